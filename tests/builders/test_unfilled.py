"""Pretrained weights are streamed to the process that holds them; real processes, on gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import end_family, torchrun
from program import TOY
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 6, "embed_dim": 16}


@pytest.fixture
def place(tmp_path: Path):
    """Makes the folder of a pretrained model, and returns the words of an experiment that starts from it."""

    def made(kind: str, **sizes: int) -> str:
        torch.manual_seed(1)
        if kind == "chameleon":
            config = ChameleonConfig(vocab_size=16640, vq_config=VQ, vocabulary_map={"<image>": 8711}, **sizes)
            ChameleonForConditionalGeneration(config).save_pretrained(tmp_path / kind)
        else:
            LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes)).save_pretrained(tmp_path / kind)
        words = WordLevel({"[UNK]": 3}, unk_token="[UNK]")
        Tokenizer(words).save(str(tmp_path / kind / "tokenizer.json"))
        return f"backbone={{kind: {kind}, init: pretrained, checkpoint: {tmp_path / kind}, max_seq_len: 200}}"

    return made


def built(folder: Path, processes: int, *words: str) -> list[dict[str, Any]]:
    """What each process says."""
    script, file = HERE / "filling_rank.py", folder / "said.json"
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "support")])
    alone = [sys.executable, str(script), str(file), str(TOY), *words]
    command = alone if processes == 1 else list(map(str, torchrun(script, file, TOY, *words, processes=processes)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=150)
    finally:
        end_family(process)
    assert process.returncode == 0, err
    said: list[dict[str, Any]] = json.loads(file.read_text())
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chameleon", "causal_lm"])
def test_parts_of_a_policy_are_those_of_the_whole(tmp_path: Path, place, kind: str) -> None:
    """Head, rows of appended ids and dropout included; 33 rows are not alike on three processes."""
    sizes = {"hidden_size": 33 * 2, "intermediate_size": 49, "num_hidden_layers": 2, "num_attention_heads": 3}
    words = place(kind, **sizes, num_key_value_heads=3, max_position_embeddings=200)
    said = built(tmp_path, 3, words, "action_head.reduced_ratio=0.5", "action_head.heads=3")
    assert [each["different"] for each in said] == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_never_needs_much_more_memory_than_it_will_hold(tmp_path: Path, place, processes: int) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 8}
    said = built(tmp_path, processes, place("chameleon", **sizes, num_key_value_heads=8, max_position_embeddings=200))
    whole = 4 * (2 * 16640 * 512 + 14 * (4 * 512**2 + 3 * 512 * 2048))
    for each in said:
        assert each["different"] == []
        assert each["held"] == pytest.approx(whole / processes, rel=0.02)
        assert each["peak"] < 1.2 * each["held"], (each["peak"] >> 20, each["held"] >> 20)

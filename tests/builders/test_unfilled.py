"""Pretrained weights are streamed to the process that holds them; real processes, on gloo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import carry_out
from program import TOY, Program
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM

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


def built(folder: Path, processes: int, *words: str, **environment: str) -> list[dict[str, Any]]:
    """What each process says."""
    script, file = Path(__file__).with_name("filling_rank.py"), folder / "said.json"
    carry_out(script, file, TOY, *words, processes=None if processes == 1 else processes, **environment)
    said: list[dict[str, Any]] = json.loads(file.read_text())
    return said


BF16, FOUR_BITS = "base: bf16", "base: 4bit"
WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 8}
IN_BLOCKS, IN_EMBEDDINGS = 14 * (4 * 512**2 + 3 * 512 * 2048), 2 * 16640 * 512

MEASURED = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""Tensors of a megabyte go back to the system when they are freed, as those of a large policy do."""

_OF_MODULES = 32 << 20
"""Bytes that many small modules take, and bitsandbytes while it rounds one matrix (14 for each number)."""


def adapters(kind: str, base: str) -> tuple[str, str]:
    return f"backbone.adapter={{kind: {kind}, rank: 3, {base}}}", "train.precision=bf16"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("chameleon", ()),
        ("causal_lm", ()),
        ("causal_lm", ("train.memory.parameters=bf16", "train.precision=bf16")),
        ("chameleon", adapters("lora", "base: fp32")),
        ("chameleon", adapters("dora", BF16)),
        ("chameleon", adapters("dora", FOUR_BITS)),
        ("causal_lm", adapters("lora", FOUR_BITS)),
    ],
)
def test_parts_of_a_policy_are_those_of_the_whole(tmp_path: Path, place, kind: str, words: tuple[str, ...]) -> None:
    """Head, adapters, rows of appended ids and dropout included; 33 rows are not alike on three processes."""
    sizes = {"hidden_size": 33 * 2, "intermediate_size": 49, "num_hidden_layers": 2, "num_attention_heads": 3}
    backbone = place(kind, **sizes, num_key_value_heads=3, max_position_embeddings=200)
    said = built(tmp_path, 3, backbone, "action_head.reduced_ratio=0.5", "action_head.heads=3", *words)
    assert [each["different"] for each in said] == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["plain", "lora", "4bit"])
def test_parts_of_a_policy_that_starts_from_another_are_those_of_the_whole(
    tmp_path: Path, program: Program, start: str
) -> None:
    """Which has no adapters, or the same."""
    kinds = {"plain": (), "lora": adapters("lora", "base: fp32"), "4bit": adapters("dora", FOUR_BITS)}
    done = program.run("run", TOY, *kinds[start], "train.max_steps=1", "evaluate.open_loop=null")
    assert done.returncode == 0, done.stderr
    new = [kinds[start]] if start != "plain" else [(), adapters("dora", BF16), adapters("dora", FOUR_BITS)]
    for number, words in enumerate(new):
        (folder := tmp_path / str(number)).mkdir()
        said = built(folder, 2, *words, f"init_from={program.only_run()}")
        assert [each["different"] for each in said] == [[], []], words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "words", "bits"),
    [
        (1, (), (32, 32)),
        (2, (), (16, 16)),
        (2, adapters("lora", BF16), (8, 8)),
        (1, adapters("dora", FOUR_BITS), (4.15, 16)),
        (2, adapters("lora", FOUR_BITS), (4.15, 8)),
    ],
)
def test_a_process_never_needs_much_more_memory_than_it_will_hold(
    tmp_path: Path, place, processes: int, words: tuple[str, ...], bits: tuple[float, float]
) -> None:
    """`bits` of each number that a process holds of the blocks and of the embeddings."""
    said = built(
        tmp_path,
        processes,
        place("chameleon", **WIDE, num_key_value_heads=8, max_position_embeddings=200),
        *words,
        **MEASURED,
    )
    whole = (bits[0] * IN_BLOCKS + bits[1] * IN_EMBEDDINGS) / 8
    assert [each["held"] for each in said] == pytest.approx([whole] * processes, rel=0.08)  # with head and adapters
    check_memory(said, _OF_MODULES if words else 0)


def check_memory(said: list[dict[str, Any]], slack: int) -> None:
    for each in said:
        assert each["different"] == []
        assert each["peak"] < 1.2 * each["held"] + slack, (each["peak"] >> 20, each["held"] >> 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "words"), [(2, ()), (1, adapters("lora", FOUR_BITS)), (2, adapters("lora", BF16))]
)
def test_a_process_that_starts_from_another_policy_needs_no_more_either(
    tmp_path: Path, program: Program, processes: int, words: tuple[str, ...]
) -> None:
    sizes = ", ".join(f"{name}: {size}" for name, size in WIDE.items())
    backbone = (
        f"backbone={{kind: causal_lm, preset: tiny, max_seq_len: 160, sizes: {{{sizes}, num_key_value_heads: 8}}}}"
    )
    done = program.run("run", TOY, backbone, "train.max_steps=1", "train.batch_size=2", "evaluate.open_loop=null")
    assert done.returncode == 0, done.stderr
    said = built(tmp_path, processes, backbone, *words, f"init_from={program.only_run()}", **MEASURED)
    check_memory(said, _OF_MODULES if words else 0)
    bits = 4.15 if processes == 1 else 16 if not words else 8
    assert [each["held"] > bits / 8 * IN_BLOCKS for each in said] == [True] * processes

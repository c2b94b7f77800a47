"""A run on the finished token rows of a pre-tokenised training of RynnVLA-002."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from program import TOY
from rynnvla_data import vla_conversations, world_model_conversations, write_records, write_trajectories
from rynnvla_rows import ExpectedRows, chameleon_like_tokenizer
from toy_source import ToySource
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from vlatrack.errors import DataError
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec

VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1, 1],
    "num_res_blocks": 1,
    "num_embeddings": 6,
    "embed_dim": 16,
    "latent_channels": 16,
    "resolution": 32,
}
RANGES = "{action_low: [-1, -1], action_high: [1, 1], state_low: [-2, -2], state_high: [2, 2]}"


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, with the vocabulary of the real one."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ChameleonConfig(
        vocab_size=65536,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=300,
        vq_config=VQ,
        vocabulary_map={"<image>": 8711} | {f"IMGIMG{letter}Z": 4 + code for code, letter in enumerate("ABCDEF")},
    )
    torch.manual_seed(1)
    ChameleonForConditionalGeneration(config).save_pretrained(folder)
    chameleon_like_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def records(folder: Path, code: int = 4) -> Path:
    """The toy's VLA and world-model rows as the reference tokenises them."""
    (folder / "exps").mkdir()
    trajectories, views = folder / "processed_data/toy", ["imgs_third_view"]
    write_trajectories(trajectories, ToySource(episodes=2), {"front": views[0]})
    rows = ExpectedRows(
        folder / "exps",
        tokenizer=chameleon_like_tokenizer(),
        codes=lambda image: code + image[:2, :2, 0].astype(np.int64) % 6,
        ranges={"action": ([-1, -1], [1, 1]), "state": ([-2, -2], [2, 2])},
    )
    items = vla_conversations(trajectories, history=2, horizon=3, cameras=views)["all"]
    items += world_model_conversations(trajectories, cameras=views)["all"]
    return write_records(folder, [rows.row(item) for item in items])


def run_on(rows: Path, chameleon: Path, folder: Path, *overrides: str) -> RunDirectory:
    words = (
        f"data.train={{kind: rynnvla_records, path: {rows}}}",
        f"data.val_ind={{kind: rynnvla_records, path: {rows}}}",
        f"backbone={{kind: chameleon, init: pretrained, checkpoint: {chameleon}, max_seq_len: 300}}",
        f"tokenizer.statistics={RANGES}",
        "tokenizer.bins=256",
        "data.history=2",
        "data.history_start=shorter",
        "data.world_history=1",
        "train.max_steps=4",
    )
    return run_experiment(load_spec(TOY, [*words, *overrides]), runs=folder / "runs")


@pytest.mark.slow
def test_a_run_trains_and_validates_on_finished_rows(chameleon: Path, tmp_path: Path) -> None:
    run = run_on(records(tmp_path), chameleon, tmp_path)
    (line,) = map(json.loads, run.log_files["val_ind"].read_text().splitlines())
    assert line["val_closs"] > 0
    assert line["val_l1_loss_action_9"] > 0
    (line,) = map(json.loads, run.log_files["train"].read_text().splitlines())
    assert {"train_closs", "train_loss_ct", "train_l1_loss_action_7", "train_loss"} <= line.keys()
    assert len(list((tmp_path / "runs/.cache/data/rows").glob("*.arrow"))) == 1


@pytest.mark.slow
def test_rows_with_ids_beyond_the_vocabulary_are_refused_by_name(chameleon: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\d+\.pkl: .*"):
        run_on(records(tmp_path, code=70000), chameleon, tmp_path)

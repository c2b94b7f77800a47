"""A policy as a folder of its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from program import TOY, Program

from vlatrack.builders.policy import StoredPolicy, build_policy
from vlatrack.errors import CheckpointError
from vlatrack.runner.export import export_policy
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.training.checkpoint.contents import load_weights, read_counters, read_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = load_spec(TOY, ["train.max_steps=2", "evaluate.open_loop=null"])
    return run_experiment(spec, runs=tmp_path_factory.mktemp("export") / "runs").path


def test_an_exported_policy_needs_nothing_of_its_run_and_keeps_its_digest(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "runs" / "toy" / run.name)
    checkpoint = next((moved / "checkpoints").glob("step-*"))
    expected, digest = (
        torch.load(checkpoint / "optimizer.pt", weights_only=True),
        read_manifest(checkpoint).policy_sha256,
    )
    assert expected["random"]
    assert export_policy(moved, tmp_path / "policy", checkpoint="last") == digest
    shutil.rmtree(tmp_path / "runs")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        *("files.json", "image_tokenizer", "policy.json", "policy.safetensors", "spec.yaml", "text_tokenizer")
    }
    stored = StoredPolicy.open(tmp_path / "policy", {})
    policy = build_policy(stored.spec, stored.source(stored.spec))
    load_weights(tmp_path / "policy", policy)
    ImageTokenizer.load(stored.record.image_tokenizer)
    assert stored.record.policy_sha256 == digest
    assert stored.record.norm_stats.actions.dimensions == 2
    with pytest.raises(CheckpointError, match="an exported policy; a training resumes from its run only"):
        read_counters(tmp_path / "policy")


def test_a_folder_that_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is there already; choose another --output"):
        export_policy(run, tmp_path)


def test_export_from_the_command_line_names_the_policy(program: Program, run: Path) -> None:
    done = program.run("export", run, "-o", "policy")
    assert done.returncode == 0, done.stderr
    digest = json.loads((program.folder / "policy" / "files.json").read_text())["policy_sha256"]
    assert done.stdout == f"wrote policy: policy {digest[:12]}\n"

"""Experiments that do not fit their data or machine: one clear line each, and nothing is left behind."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from program import TOY

from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.errors import VlatrackError
from vlatrack.runner.git_state import git_state
from vlatrack.runner.manifest import write_manifest
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training.checkpoint.contents import load_weights

BAD = {
    "camera": (["data.cameras=[wrist]"], "toy: no camera 'wrist'; data.cameras can name: front"),
    "action dimension": (["action_head.action_dim=7"], "actions have 2 numbers, action_head.action_dim is 7"),
    "chunk": (["action_head.time_horizon=15"], "longest episode has 14 steps, fewer than .*time_horizon = 15"),
    "task": (["data.train.tasks=[push the squares]"], "no task 'push the squares' .did you mean 'push the square'"),
    "context": (["backbone.max_seq_len=64"], "a sample has .* tokens .* backbone.max_seq_len is 64; shorten"),
    "target": (["data.train.target=no_such_package:Thing"], "no_such_package:Thing: cannot be loaded"),
    "state range": (
        ["tokenizer.statistics={action_low: [-1, -1], action_high: [1, 1], state_low: [0], state_high: [1]}"],
        "states have 2 numbers, the experiment's state range has 1",
    ),
    "missing dataset": (["data.train={kind: lerobot, path: nowhere}"], "nowhere"),
    "parameter group": (
        ["optim.groups=[{match: 'action_heads.*', lr: 1e-3}]"],
        r"optim.groups.0.match: 'action_heads.\*' matches no parameter .there are action_head.\*",
    ),
    "warm-up": (["optim.warmup_steps=45"], "warm-up and decay take 45 steps, and train.epochs = 3 has 45; shorten"),
    "decay": (
        ["optim.schedule=wsd", "optim.warmup_steps=10", "optim.decay_steps=40"],
        "optim: warm-up and decay take 50 steps, and train.epochs = 3 has 45; shorten them, or train longer",
    ),
    "flex": (["train.attention=flex"], "train.attention: flex needs a GPU .*; use sdpa"),
    "checkpoint": (
        ["backbone={kind: chameleon, init: pretrained, checkpoint: nowhere/at all}"],
        "nowhere/at all: no such checkpoint folder",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), BAD.values(), ids=BAD)
def test_an_experiment_that_does_not_fit_is_refused_in_one_line(tmp_path, overrides, message) -> None:
    with pytest.raises(VlatrackError, match=message) as caught:
        run_experiment(load_spec(TOY, overrides), runs=tmp_path / "runs")
    assert len(str(caught.value).splitlines()) == 1


def test_a_tracker_without_its_package_is_refused_with_the_pip_line(tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(VlatrackError, match=r"pip install 'vlatrack\[wandb\]'"):
        run_experiment(load_spec(TOY, ["tracking.backends=[{kind: wandb}]"]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_experiment_that_holds_a_key_of_the_environment_is_refused_without_showing_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789abcdef")
    spec = load_spec(TOY, ["data.train.options={note: see planted-0123456789abcdef}"])
    with pytest.raises(VlatrackError, match="holds the value of WANDB_API_KEY") as caught:
        run_experiment(spec, runs=tmp_path / "runs")
    assert "planted" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_keys_are_hidden_in_the_manifest_that_trackers_get(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-0123456789abcdef")
    write_manifest(tmp_path / "manifest.json", {"git": {"diff": '+KEY = "planted-0123456789abcdef"\n'}})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"git": {"diff": '+KEY = "***"\n'}}


def test_uncommitted_text_that_is_not_utf8_is_described(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    (tmp_path / "notes.txt").write_text("coffee\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "notes.txt").write_bytes("café\n".encode("latin-1"))
    state = git_state(tmp_path)
    assert state is not None
    assert "+caf\ufffd" in state.diff


def test_more_processes_than_gpus_are_refused(monkeypatch) -> None:
    import torch

    from vlatrack.builders.training import check_processes
    from vlatrack.training.process_group import ProcessGroup

    group = ProcessGroup()
    group.world_size = group.local_world_size = 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(VlatrackError, match=r"train\.device: auto, but torch sees 1 GPUs for 2 processes"):
        check_processes(load_spec(TOY, ["train.device=auto"]), group)
    check_processes(load_spec(TOY, ["train.device=cpu"]), group)


def test_several_gpus_without_nccl_are_refused(monkeypatch) -> None:
    import torch

    from vlatrack.builders.training import check_processes
    from vlatrack.training.process_group import ProcessGroup

    group = ProcessGroup()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    check_processes(load_spec(TOY, ["train.device=auto"]), group)
    group.world_size = group.local_world_size = 2
    with pytest.raises(
        VlatrackError, match=r"train\.device: auto, but this build of torch has no NCCL, .* or use cpu$"
    ):
        check_processes(load_spec(TOY, ["train.device=auto"]), group)
    check_processes(load_spec(TOY, ["train.device=cpu"]), group)


def test_resuming_what_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(VlatrackError, match="not a run directory"):
        resume_run(tmp_path)


def test_a_checkpoint_of_another_geometry_is_refused(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    run = run_experiment(load_spec(TOY, ["train.max_steps=1"]), runs=tmp_path / "runs")
    weights = run.checkpoints.find("last") / "policy.safetensors"
    state = load_file(weights)
    state["action_head.queries"] = state["action_head.queries"][:-1].clone()
    save_file(state, weights)
    policy = build_policy(run.spec(), backbone_factory(run.spec()).open())
    with pytest.raises(VlatrackError, match="another geometry than this experiment"):
        load_weights(weights.parent, policy)

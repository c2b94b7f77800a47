"""A run resumes bitwise with each optimiser and schedule, and an average of the weights is what acts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from program import TOY
from safetensors.torch import load_file

from vlatrack.builders.optimizer import group_rates
from vlatrack.errors import SpecError
from vlatrack.runner.evaluate import evaluate_run
from vlatrack.runner.export import export_policy
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training.process_group import ProcessGroup

QUICK = (
    "train.max_steps=4",
    "train.checkpoint.every_steps=2",
    "train.checkpoint.keep_last=9",
    "evaluate.open_loop.max_samples=8",
    "data.val_ood=null",
)
BF16 = ("train.precision=bf16", "train.memory.parameters=bf16")
WAYS = {
    "stochastic": BF16,
    "stochastic, 8bit": (*BF16, "train.memory.optimizer_states=8bit"),
    "kahan": (*BF16, "train.memory.rounding=kahan"),
    "8bit": ("train.memory.optimizer_states=8bit",),
    "muon": ("optim.kind=muon",),
    "groups": ("optim.groups=[{match: 'action_head.*', lr: 1e-2, weight_decay: 0}]",),
    "average": ("train.ema={decay: 0.9}",),
    "average of bf16": (*BF16, "train.ema={decay: 0.9}"),
    "wsd": ("optim.schedule=wsd", "optim.warmup_steps=2", "optim.decay_steps=42"),
}


@pytest.fixture(autouse=True)
def _another_precision() -> Iterator[None]:
    """accelerate keeps the precision that a process began with."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumes_bitwise_with(tmp_path: Path, way: str) -> None:
    run = run_experiment(load_spec(TOY, [*QUICK, *WAYS[way]]), runs=tmp_path / "runs").path
    last = run / "checkpoints" / "step-00000004"
    files = [last / "policy.safetensors", last / "training" / "states.safetensors"]
    before = [file.read_bytes() for file in files]
    resume_run(run, checkpoint="step-00000002")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_the_average_is_what_is_evaluated_exported_and_started_from(tmp_path: Path) -> None:
    overrides = [*QUICK, *WAYS["average of bf16"], "train.max_steps=15"]
    run = run_experiment(load_spec(TOY, overrides), runs=tmp_path / "runs").path
    (line,) = (run / "log_eval_ind.txt").read_text().splitlines()
    evaluated = evaluate_run(run, checkpoint="last").metrics
    assert evaluated["val_ind_closs"] == json.loads(line)["val_closs"]
    last = run / "checkpoints" / "step-00000015"
    export_policy(run, tmp_path / "policy", checkpoint="last")
    weights = load_file(tmp_path / "policy" / "policy.safetensors")
    states = load_file(last / "training" / "states.safetensors")
    own = {name.removeprefix("weights."): tensor for name, tensor in states.items() if name.startswith("weights.")}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}
    assert any(not torch.equal(weights[name].bfloat16(), tensor) for name, tensor in own.items())


def test_a_group_is_called_by_its_first_pattern() -> None:
    heads = "[{match: [action_head.*, x], lr: 1}, {match: ACTION_head*, lr: 2}, {match: '*', lr: 4}, {match: '*'}]"
    spec = load_spec(TOY, ["optim.lr=2", f"optim.groups={heads}"])
    assert group_rates(spec) == {"action_head": 0.5, "action_head_1": 1, "group_2": 2}


@pytest.mark.slow
def test_each_learning_rate_is_logged_by_the_name_of_its_group(tmp_path: Path) -> None:
    rates = "{match: 'action_head.*', lr: 1e-2}, {match: '*.embed_tokens.*', weight_decay: 0}, {match: '*', lr: 4e-3}"
    words = [*QUICK, f"optim.groups=[{rates}]", "optim.lr=2e-3", "tracking.log_every=2", "train.max_steps=2"]
    run = run_experiment(load_spec(TOY, words), runs=tmp_path / "runs").path
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (logged,) = [line["data"] for line in lines if "train_lr" in line["data"]]
    found = {name: value / logged["train_lr"] for name, value in logged.items() if name.startswith("train_lr_")}
    assert found == pytest.approx({"train_lr_action_head": 5, "train_lr_group_2": 2})


def test_states_in_8_bits_are_refused_for_more_than_one_process(tmp_path: Path) -> None:
    class Two(ProcessGroup):
        world_size = 2

    with pytest.raises(SpecError, match="8bit cannot be sharded over 2 processes, which would cut its") as caught:
        run_experiment(load_spec(TOY, WAYS["8bit"]), runs=tmp_path / "runs", group=Two())
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()

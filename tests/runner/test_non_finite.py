"""A loss or gradient that is not finite: it never reaches the weights, whatever the run does about it."""

import json
import math
from pathlib import Path

import pytest
import torch
from program import TOY, finish_of
from safetensors.torch import load_file

from vlatrack.errors import NonFiniteError
from vlatrack.metrics.losses import LossMetric
from vlatrack.models.losses.base import LossInputs, LossTerm
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training import loop
from vlatrack.training.optimisation import StepResult

SHORT = ("train.epochs=2", "tracking.log_every=1", "tracking.system_every_s=null", "evaluate.open_loop=null")
EVERY_STEP = ("train.checkpoint.every_steps=1", "train.checkpoint.keep_last=99")


@pytest.fixture
def _nan_in_step_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the fourth step that is computed in this process is NaN in one number."""
    calls, whole = iter(range(1, 1000)), VlaPolicy.loss

    def loss(self: VlaPolicy, *arguments: object) -> torch.Tensor:
        value = whole(self, *arguments)
        return value * float("nan") if next(calls) == 4 else value

    monkeypatch.setattr(VlaPolicy, "loss", loss)


def _run(tmp_path: Path, *overrides: str) -> Path:
    runs = tmp_path / "runs"
    try:
        run_experiment(load_spec(TOY, [*SHORT, "train.micro_batch=null", *overrides]), runs=runs)
    finally:
        (run,) = (runs / "toy").iterdir()
    return run


def _records(run: Path, kind: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def _events(run: Path, name: str) -> list[dict]:
    return [record["data"]["data"] for record in _records(run, "event") if record["data"]["name"] == name]


def _is_finite(checkpoint: Path) -> bool:
    return all(value.isfinite().all() for value in load_file(checkpoint / "policy.safetensors").values())


def test_a_learning_rate_that_destroys_the_policy_halts_the_run_as_failed(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^step \d+: loss or gradient is not finite .* lower optim\.lr") as caught:
        _run(tmp_path, "optim.lr=1e30", "optim.schedule=constant", *EVERY_STEP)
    assert len(str(caught.value).splitlines()) == 1
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert finish_of(run)["status"] == "FAILED"
    assert "is not finite" in finish_of(run)["reason"]
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    assert checkpoints
    assert checkpoints[-1].name in str(caught.value)
    assert all(map(_is_finite, checkpoints))


@pytest.mark.usefixtures("_nan_in_step_4")
def test_halting_keeps_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"step 4: .*\(loss nan\); the last checkpoint, step-00000003, is as it was"
    ):
        _run(tmp_path, *EVERY_STEP)
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))][-1] == "step-00000003"
    assert _events(run, "non_finite")[0]["step"] == 4


@pytest.mark.usefixtures("_nan_in_step_4")
def test_what_is_known_of_the_lost_step_is_written_down_and_logged(tmp_path: Path) -> None:
    run = _run(tmp_path, "train.non_finite=skip", "train.max_steps=6", "train.checkpoint.every_epochs=2")
    (file,) = (run / "forensics").iterdir()
    known = json.loads(file.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert (file.name, known["step"], known["loss"]) == ("step-00000004.json", 4, "NaN")
    assert len(known["samples"]) == 16
    assert all(sample["task"] == "push the square" for sample in known["samples"])
    assert len({sample["number"] for sample in known["samples"]}) == 16
    assert set(known["loss_terms"]) == {"closs", "loss_ct", "z_loss"}
    assert any(module["non_finite"] for module in known["gradients"].values())
    assert not any(module["non_finite"] for module in known["parameters"].values())
    assert [record["step"] for record in known["last_records"]] == [1, 2, 3]
    assert "forensics/step-00000004.json" in [record["data"]["name"] for record in _records(run, "artifact")]
    (found,) = _events(run, "health")
    assert (found["detector"], found["severity"], found["step"]) == ("not_finite", "critical", 4)
    assert len([r for r in _records(run, "event") if r["data"]["alert"]]) == 1


def test_of_many_lost_steps_the_first_three_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VlaPolicy.loss
    monkeypatch.setattr(VlaPolicy, "loss", lambda self, *arguments: whole(self, *arguments) * float("nan"))
    with pytest.raises(NonFiniteError, match="step 11: "):
        _run(tmp_path, "train.non_finite=skip")
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert sorted(file.name for file in (run / "forensics").iterdir()) == [
        f"step-{step:08d}.json" for step in (1, 2, 3)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("_nan_in_step_4")
def test_skipping_leaves_the_step_out_counts_it_and_says_so(tmp_path: Path) -> None:
    run = _run(tmp_path, "train.non_finite=skip", "train.max_steps=6", *EVERY_STEP)
    assert finish_of(run)["status"] == "FINISHED"
    weights = [load_file(run / "checkpoints" / f"step-{step:08d}" / "policy.safetensors") for step in (3, 4, 5)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    (event,) = _events(run, "non_finite")
    assert event["reason"] == "step 4: loss or gradient is not finite (loss nan)"
    counted = {r["step"]: r["data"].get("train_skipped_steps", 0) for r in _records(run, "metrics")}
    assert (counted[3], counted[4], counted[5]) == (0, 1, 1)
    train = [json.loads(line) for line in (run / "log_train.txt").read_text().splitlines()]
    assert all(line["train_loss"] == line["train_loss"] for line in train)  # no NaN: the step is not among the samples


@pytest.mark.slow
def test_skipping_ends_the_run_when_no_step_can_be_taken_any_more(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^step 12: .*, as in the 10 steps before it; .*lower optim\.lr, or look"):
        _run(tmp_path, "optim.lr=1e30", "optim.schedule=constant", "optim.warmup_epochs=0", "train.non_finite=skip")
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert finish_of(run)["status"] == "FAILED"
    losses = {r["step"]: r["data"]["train_loss"] for r in _records(run, "metrics")}
    assert math.isfinite(losses[1])
    assert losses[2] == "NaN"  # not 0, which would be the best of all
    assert len([r for r in _records(run, "event") if r["data"]["alert"]]) == 1


@pytest.mark.usefixtures("_nan_in_step_4")
def test_rolling_back_returns_to_the_checkpoint_and_leaves_the_batch_out(tmp_path: Path) -> None:
    every_two = ("train.checkpoint.every_steps=2", "train.checkpoint.keep_last=99")
    run = _run(tmp_path, "train.non_finite=rollback", "train.max_steps=6", *every_two)
    assert finish_of(run)["status"] == "FINISHED"
    (event,) = _events(run, "rollback")
    assert event == {"step": 2, "from_step": 4}
    state = json.loads((max((run / "checkpoints").glob("step-*")) / "state.json").read_text())["counters"]
    assert (state["rollbacks"], state["excluded_steps"], state["skipped_steps"], state["step"]) == (1, [4], 1, 6)
    assert _is_finite(max((run / "checkpoints").glob("step-*")))


def test_rollbacks_end_the_run_when_they_do_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VlaPolicy.loss
    monkeypatch.setattr(VlaPolicy, "loss", lambda self, *arguments: whole(self, *arguments) * float("nan"))
    with pytest.raises(NonFiniteError, match=r"step 3: .* after 2 rollbacks; the last checkpoint, step-00000000"):
        _run(tmp_path, "train.non_finite=rollback", "train.max_rollbacks=2")


@pytest.mark.slow
def test_a_run_that_halted_may_go_on_by_skipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = iter(range(1, 1000)), VlaPolicy.loss
    monkeypatch.setattr(
        VlaPolicy, "loss", lambda self, *a: whole(self, *a) * (float("nan") if next(calls) in (4, 5) else 1.0)
    )
    with pytest.raises(NonFiniteError):
        _run(tmp_path, *EVERY_STEP)
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    resume_run(run, overrides=["train.non_finite=skip"])
    assert finish_of(run)["status"] == "FINISHED"
    (resumed,) = _events(run, "resume")
    assert resumed["changes"] == "train.non_finite: halt -> skip"


def test_a_gpu_is_not_waited_for_between_two_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is no CPU, the guard reads it only when it is asked to check."""
    read = []
    guard = loop.NonFiniteGuard(torch.device("meta"), "halt", ())
    monkeypatch.setattr(guard, "check", lambda state: read.append(state.step))
    finite = torch.zeros((), dtype=torch.bool, device="meta")
    guard.note(loop.TrainState(step=4), StepResult(loop.MetricStates(), finite.float(), {}, finite.float(), finite))
    assert read == []


class Broken(LossTerm):
    """A loss term of one's own whose gradient breaks down in the third step."""

    metric = LossMetric("broken", "what a user's mistake may look like")
    calls = 0

    def count(self, batch) -> float:
        return float(len(batch.action_rows))

    def total(self, inputs: LossInputs) -> torch.Tensor:
        type(self).calls += 1
        return inputs.actions.sum() * (float("nan") if self.calls == 3 else 1.0)


def test_a_loss_term_of_ones_own_that_becomes_nan_is_named(tmp_path: Path) -> None:
    term = f"loss.terms=[{{kind: custom, target: '{__name__}:Broken', weight: 1}}]"
    with pytest.raises(NonFiniteError, match=r"step \d: loss or gradient is not finite \(loss nan, from broken\)"):
        _run(tmp_path, term, "data.samples=[vla]")

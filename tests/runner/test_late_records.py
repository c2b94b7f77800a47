"""On a GPU a record is read one step later; here a CPU does the same."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from program import TOY, finish_of

from vlatrack.errors import SpecError
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training.loop import Training
from vlatrack.training.non_finite import NonFiniteGuard
from vlatrack.training.throughput import SPEEDS

SHORT = ("train.max_steps=7", "tracking.log_every=2", "tracking.system_every_s=null", "evaluate.open_loop=null")


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "_logs_late", True)
    monkeypatch.setattr(NonFiniteGuard, "note", noted_without_a_check(NonFiniteGuard.note))


def noted_without_a_check(note):
    def noted(self, state, result) -> None:
        self._at_once = False
        note(self, state, result)

    return noted


def run_of(folder: Path, *overrides: str) -> Path:
    return run_experiment(load_spec(TOY, [*SHORT, *overrides]), runs=folder).path


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def metrics(run: Path) -> list[tuple[int, dict]]:
    return [
        (record["step"], {name: value for name, value in record["data"].items() if not name.endswith(tuple(SPEEDS))})
        for record in records(run, "metrics")
    ]


@pytest.mark.slow
def test_records_that_are_read_late_are_the_records_that_are_read_at_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at_once = metrics(run_of(tmp_path / "at-once"))
    request.getfixturevalue("_late")
    run = run_of(tmp_path / "late", "train.profile.steps=[3,4]")
    assert metrics(run) == at_once
    assert [step for step, _ in at_once] == [2, 4, 6, 7]
    trace = json.loads(gzip.decompress((run / "profile" / "steps-3-4.json.gz").read_bytes()))
    assert any("scaled_dot_product" in event.get("name", "") for event in trace["traceEvents"])
    logged = [record["data"]["name"] for record in records(run, "artifact")]
    assert "profile/steps-3-4.json.gz" in logged


@pytest.mark.slow
@pytest.mark.usefixtures("_late")
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_step_that_was_not_taken_is_noticed_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    calls, whole = iter(range(1, 1000)), VlaPolicy.loss
    monkeypatch.setattr(
        VlaPolicy, "loss", lambda self, *a: whole(self, *a) * (float("nan") if next(calls) == 3 else 1.0)
    )
    run = run_of(tmp_path, f"train.non_finite={action}", "train.micro_batch=null")
    assert finish_of(run)["status"] == "FINISHED"
    (event,) = [r["data"]["data"] for r in records(run, "event") if r["data"]["name"] == "non_finite"]
    assert event["step"] == 3
    counters = json.loads((max((run / "checkpoints").glob("step-*")) / "state.json").read_text())["counters"]
    assert counters["skipped_steps"] == 1
    assert counters["excluded_steps"] == ([3] if action == "rollback" else [])


def test_a_profile_beyond_the_last_step_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"train.profile.steps: \[6, 8\], but the training ends with step 7$"):
        run_of(tmp_path, "train.profile.steps=[6,8]")


@pytest.mark.slow
def test_the_profiler_has_ended_when_a_run_breaks_off_within_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, whole = iter(range(1, 1000)), VlaPolicy.loss

    def loss(self: VlaPolicy, *arguments: object) -> torch.Tensor:
        if next(calls) == 3:
            raise RuntimeError("broken")
        return whole(self, *arguments)

    monkeypatch.setattr(VlaPolicy, "loss", loss)
    with pytest.raises(RuntimeError, match="broken"):
        run_of(tmp_path, "train.profile.steps=[1,5]")
    assert not torch.autograd.profiler._is_profiler_enabled

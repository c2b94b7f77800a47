"""TensorBoard, read back with TensorBoard's own reader."""

import contextlib
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig, Position, RunFinish, RunStart
from vlatrack.tracking.backends.tensorboard import EVENT_FILE, NOTE_FILE, TensorboardBackend
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.lock import LockHeldError
from vlatrack.tracking.run import TrackedRun


def backend_of(run: ExampleRun) -> TensorboardBackend:
    return TensorboardBackend(run.dir, naming="documented")


def read(run: ExampleRun) -> EventAccumulator:
    return EventAccumulator(str(run.dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def deliver(run: ExampleRun) -> None:
    with contextlib.closing(backend_of(run)) as backend:
        position = backend.open(run.start_value(), -1)
        backend.describe(RunStart.of([record for record in run.records() if record.kind == "start"][-1]))
        backend.deliver([record for record in run.metrics() if record.seq >= position.metrics_from])
        if run.records()[-1].kind == "finish":
            backend.finish(RunFinish.of(run.records()[-1]))


def texts(run: ExampleRun, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in read(run).Tensors(tag)]


@pytest.fixture
def run(tmp_path: Path) -> ExampleRun:
    run = ExampleRun(tmp_path)
    run.log(20)
    return run


def test_tensorboard_shows_the_journals_values_steps_and_times(run: ExampleRun) -> None:
    run.append("metrics", {"train_closs": math.nan}, step=20)
    run.finish("FAILED", reason="ValueError: x")
    deliver(run)
    shown = read(run)
    assert shown.Tags()["scalars"] == ["train_closs", "train_loss_ct"]
    points = shown.Scalars("train_closs")
    wanted = [(record.step, record.t_ms / 1000) for record in run.metrics()]
    assert [(point.step, point.wall_time) for point in points] == wanted
    assert [point.value for point in points[:20]] == pytest.approx([1 / (step + 3) for step in range(20)], rel=1e-6)
    assert math.isnan(points[20].value)
    assert texts(run, "run/status") == ["RUNNING", "FAILED: ValueError: x"]
    assert "| epochs | 1 |" in texts(run, "run/params")[0]


@pytest.mark.parametrize("metric", ["evaluate/val_ind_closs", "sim/arena/success"])
def test_the_evaluation_of_an_earlier_checkpoint_takes_nothing_off_the_curves(run: ExampleRun, metric: str) -> None:
    run.finish("FINISHED")
    deliver(run)
    run.start()
    run.append("metrics", {metric: 0.5}, step=4)
    run.finish("FINISHED")
    deliver(run)
    shown = read(run)
    assert [point.step for point in shown.Scalars("train_closs")] == list(range(20))
    assert [point.step for point in shown.Scalars(metric)] == [4]
    run.start()
    run.log(2, first_step=10)  # this one does go back
    deliver(run)
    assert [point.step for point in read(run).Scalars("train_closs")] == [*range(10), 10, 11]


@pytest.mark.parametrize("damage", ["no note", "damaged note", "no events", "cut events"])
def test_a_file_that_does_not_fit_its_note_is_written_anew(run: ExampleRun, damage: str) -> None:
    deliver(run)
    events, note = run.dir / "tensorboard" / EVENT_FILE, run.dir / "tensorboard" / NOTE_FILE
    whole = events.read_bytes()
    match damage:
        case "no note":
            note.unlink()
        case "damaged note":
            note.write_text("{")
        case "no events":
            events.unlink()
        case _:
            events.write_bytes(whole[:-5])
    with contextlib.closing(backend_of(run)) as backend:
        assert backend.open(run.start_value(), 20) == Position(0, 0)
        backend.describe(run.start_value())
        backend.deliver(run.metrics())
    assert events.read_bytes() == whole


def test_what_a_crash_left_behind_the_last_whole_batch_is_cut_off(run: ExampleRun) -> None:
    deliver(run)
    events = run.dir / "tensorboard" / EVENT_FILE
    whole = events.read_bytes()
    events.write_bytes(whole + whole[40:75])
    deliver(run)
    assert events.read_bytes() == whole


def test_a_run_that_went_back_shows_the_later_values(run: ExampleRun) -> None:
    run.finish("KILLED")
    deliver(run)
    run.start(epochs=1)
    for step in range(10, 15):
        run.append("metrics", {"train_closs": -float(step)}, step=step)
    with contextlib.closing(backend_of(run)) as backend:
        again = next(record for record in run.records()[1:] if record.kind == "start")
        position = backend.open(run.start_value(), again.seq - 1)
        backend.describe(RunStart.of(again))
        backend.deliver([record for record in run.metrics() if record.seq >= position.metrics_from])
    shown = [(point.step, point.value) for point in read(run).Scalars("train_closs")]
    assert [step for step, _ in shown] == list(range(15))
    assert [value for _, value in shown[10:]] == [-10.0, -11.0, -12.0, -13.0, -14.0]


def test_two_that_write_the_same_file_do_not_mix(run: ExampleRun) -> None:
    with contextlib.closing(backend_of(run)) as first, contextlib.closing(backend_of(run)) as second:
        first.open(run.start_value(), -1)
        with pytest.raises(LockHeldError):
            second.open(run.start_value(), -1)


@pytest.mark.parametrize(
    "killed_after", [pytest.param(0, marks=pytest.mark.slow), 700, pytest.param(2900, marks=pytest.mark.slow)]
)
def test_a_delivery_process_that_is_killed_goes_on_without_gaps_or_duplicates(
    run_dir: Path, eventually: Callable[..., None], killed_after: int
) -> None:
    config, cursor = BackendConfig("tensorboard"), CursorFile(run_dir / "delivery", "tensorboard-0")
    run = TrackedRun.start(run_dir, uid="u1", name="n", experiment="e", backends=[config], params={}, tags={})
    for step in range(3000):
        run.log({"train_closs": float(step)}, step=step)
    eventually(lambda: cursor.read().seq >= killed_after)
    os.kill(int((run_dir / "delivery" / "deliver.lock").read_text()), signal.SIGKILL)
    assert run.finish("FINISHED").complete
    shown = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload().Scalars("train_closs")
    metrics = [record for record in read_records(run_dir / "journal.jsonl") if record.kind == "metrics"]
    wanted = [(record.step, record.t_ms / 1000, record.data["train_closs"]) for record in metrics]
    assert [(point.step, point.wall_time, point.value) for point in shown] == wanted

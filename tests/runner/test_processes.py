"""Runs of two real processes: the numbers of one, written once, and ended truthfully when one of them breaks."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from program import TOY, Program, finish_of

from vlatrack.training.checkpoint.contents import stored_weights
from vlatrack.training.throughput import SPEEDS

SPEED = tuple(SPEEDS)
# 81 samples in steps of 16: the last step has one row, which leaves the second rank without any.
SMALL = (TOY, "data.sample_every=3", "tracking.log_every=2", "tracking.system_every_s=null")
NO_DROPOUT = (*SMALL, "backbone.residual_dropout=0", "action_head.dropout=0", "loss.image_token_weight=0.5")
EVERY_5 = ("train.checkpoint.every_steps=5", "train.checkpoint.keep_last=99")
BREAKING = Path(__file__).with_name("breaking_rank.py")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same epoch by one process and by two."""
    one, two = (Program(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    try:
        alone = one.start("run", *NO_DROPOUT, "train.epochs=1", OMP_NUM_THREADS="1")
        together = two.run_many("run", *NO_DROPOUT, "train.epochs=1")
        _, err = alone.communicate(timeout=250)
        assert alone.returncode == 0, err
        assert together.returncode == 0, together.stderr
        assert together.stdout.count("epoch 1/1    train") == 1
        yield one.only_run(), two.only_run()
    finally:
        one.close()
        two.close()


def _records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def _metrics(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Every logged training and validation metric but speeds, with its step, in the order of the journal."""
    return [
        (record["step"], {k: v for k, v in record["data"].items() if not k.endswith(SPEED)})
        for record in _records(run)
        if record["kind"] == "metrics" and not any(name.startswith("evaluate/") for name in record["data"])
    ]


def _last_metrics(run: Path) -> dict[tuple[int, str], float]:
    return {(step, name): value for step, values in _metrics(run) for name, value in values.items()}


def _weights(run: Path) -> dict[str, np.ndarray]:
    stored = stored_weights(sorted((run / "checkpoints").glob("step-*"))[-1])
    return {name: stored.read(name).numpy() for name in stored.shapes}


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Norm of the difference of all weights, relative to their norm."""
    difference = sum(float(np.square(one[name] - other[name]).sum()) for name in one)
    return float(np.sqrt(difference / sum(float(np.square(value).sum()) for value in one.values())))


@pytest.mark.slow
def test_two_processes_log_the_numbers_of_one(one_and_two) -> None:
    one, two = map(_metrics, one_and_two)
    assert [step for step, _ in one] == [step for step, _ in two]
    assert {"train_grad_norm", "train_l1_loss_action_9", "train_loss"} <= one[0][1].keys()
    for (_, expected), (_, measured) in zip(one, two, strict=True):
        assert measured == pytest.approx(expected, rel=1e-4)
    for name in ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt"):
        first, second = (json.loads((run / name).read_text()) for run in one_and_two)
        assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(one_and_two) -> None:
    assert _distance(*map(_weights, one_and_two)) < 1e-4


@pytest.mark.slow
def test_the_first_process_alone_writes_and_says_how_many_there_were(one_and_two) -> None:
    one, two = one_and_two
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    records = _records(two)
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert [record["kind"] for record in records].count("start") == 1
    assert finish_of(two)["status"] == "FINISHED"
    processes = [json.loads((run / "manifest.json").read_text())["processes"] for run in one_and_two]
    assert processes == [1, 2]


@pytest.mark.slow
def test_a_mistake_is_told_once_and_nothing_is_left(program: Program) -> None:
    done = program.run_many("run", TOY, "train.batch_size=1")
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert told == ["error: train.batch_size: 1 samples cannot be dealt out to 2 processes; raise it, or start fewer"]
    assert "exitcode  : 2 " in done.stderr
    assert not (program.folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("1:raise", "rank 1: RuntimeError: the fan fell off"),
        ("1:complain", "rank 1: DataError: frame 7: unreadable; download it again"),
        ("1:kill", "rank 1 disappeared without an error: killed, or out of memory"),
        ("0:raise", "RuntimeError: the fan fell off"),
    ],
)
def test_a_rank_that_breaks_ends_the_run_as_failed_with_its_reason(program: Program, how: str, reason: str) -> None:
    done = program.run_many("run", TOY, "train.epochs=500", script=BREAKING, BREAK=how)
    assert done.returncode == 1
    assert finish_of(program.only_run()) | {"deliver_until_ms": 0} == {
        "status": "FAILED",
        "reason": reason,
        "deliver_until_ms": 0,
    }
    if how == "1:raise":
        assert "breaking_rank.py" in (program.only_run() / "error-rank1.txt").read_text()
    if how == "1:complain":
        assert done.stderr.count("error: frame 7: unreadable; download it again") == 1


@pytest.mark.slow
def test_of_three_ranks_the_one_that_died_is_named(program: Program) -> None:
    program.run_many("run", TOY, "train.epochs=500", processes=3, script=BREAKING, BREAK="2:kill")
    finish = finish_of(program.only_run())
    assert (finish["status"], finish["reason"]) == (
        "FAILED",
        "rank 2 disappeared without an error: killed, or out of memory",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "interrupted from the keyboard"),
        (signal.SIGUSR1, "SIGUSR1, the end of the job is near"),
    ],
)
def test_torchrun_told_to_stop_ends_the_run_as_killed(program: Program, number: signal.Signals, reason: str) -> None:
    handled = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1"}  # torchrun --signals-to-handle; else SIGUSR1 ends it
    process = program.start_many("run", TOY, "train.epochs=500", **handled)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/500"):
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    finish = finish_of(program.only_run())
    assert (finish["status"], finish["reason"]) == ("KILLED", reason)


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_ends_at_the_same_weights_with_dropout(program: Program) -> None:
    done = program.run_many("run", *SMALL, *EVERY_5)
    assert done.returncode == 0, done.stderr
    run = program.only_run()
    weights, metrics = _weights(run), _last_metrics(run)
    resumed = program.run_many("run", "--resume", run, "--checkpoint", "step-00000010")
    assert resumed.returncode == 0, resumed.stderr
    assert _distance(weights, _weights(run)) == 0.0
    assert _last_metrics(run) == pytest.approx(metrics, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes_and_counts_nothing_twice(program: Program, first: int) -> None:
    done = program.run_many("run", *NO_DROPOUT, *EVERY_5, processes=first)
    assert done.returncode == 0, done.stderr
    run = program.only_run()
    metrics, logged = _last_metrics(run), (run / "log_train.txt").read_text().splitlines()
    resumed = program.run_many("run", "--resume", run, "--checkpoint", "step-00000010", processes=3 - first)
    assert resumed.returncode == 0, resumed.stderr
    assert _last_metrics(run) == pytest.approx(metrics, rel=1e-4)
    again = (run / "log_train.txt").read_text().splitlines()
    for before, after in zip(map(json.loads, logged), map(json.loads, again), strict=True):
        assert after == pytest.approx(before, rel=1e-4)


@pytest.mark.slow
def test_two_processes_evaluate_a_checkpoint_as_one_does(one_and_two, program: Program) -> None:
    _, run = one_and_two
    measured = []
    for start in (program.run, program.run_many):
        done = start("evaluate", run, "--checkpoint", "last")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("val_ind") >= 1
        (report,) = (run / "evaluation").glob("step-*.json")
        measured.append(json.loads(report.read_text()))
        report.unlink()
    for name in ("checkpoint", "policy_sha256", "fingerprints", "changes", "image_decoder"):
        assert measured[1].pop(name) == measured[0].pop(name)
    alone, together = (report.pop("calibration") for report in measured)
    assert together.keys() == alone.keys() == {"val_ind", "val_ood"}
    for split, rows in alone.items():
        assert together[split] == [pytest.approx(row, rel=1e-5) for row in rows]
    alone, together = (report.pop("tasks") for report in measured)
    for split, tasks in alone.items():
        assert together[split].keys() == tasks.keys()
        for task, metrics in tasks.items():
            assert together[split][task] == pytest.approx(metrics, rel=1e-5), task
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


@pytest.mark.slow
def test_accelerate_starts_the_same_run(program: Program, one_and_two) -> None:
    done = program.run_accelerated("run", *NO_DROPOUT, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert _last_metrics(program.only_run()) == pytest.approx(_last_metrics(one_and_two[1]), rel=1e-9)


@pytest.mark.slow
def test_a_step_that_is_not_finite_ends_both_ranks_and_is_told_once(program: Program) -> None:
    done = program.run_many("run", TOY, "optim.lr=1e30", "optim.schedule=constant", "train.checkpoint.every_steps=1")
    assert sum(line.startswith("error: step ") for line in done.stderr.splitlines()) == 1
    run = program.only_run()
    assert finish_of(run)["status"] == "FAILED"
    assert all(np.isfinite(value).all() for value in _weights(run).values())


@pytest.mark.slow
def test_torchrun_told_to_stop_in_the_first_epoch_leaves_a_checkpoint(program: Program) -> None:
    process = program.start_many("run", *SMALL, "train.epochs=500", "train.checkpoint.every_epochs=500")
    run = _await_step(program, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert finish_of(run)["status"] == "KILLED"
    assert list((run / "checkpoints").glob("step-*/files.json"))


def _await_step(program: Program, step: int) -> Path:
    give_up = time.monotonic() + 100
    while time.monotonic() < give_up:
        for journal in (program.folder / "runs").glob("*/*/journal.jsonl"):
            if f'"step":{step},' in journal.read_text():
                return journal.parent
        time.sleep(0.1)
    pytest.fail("the run does not get there")

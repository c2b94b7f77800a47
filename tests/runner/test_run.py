"""Whole runs: trained, stopped, killed, resumed, evaluated; each a real process."""

import json
import os
import shutil
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from happens import happens
from program import TOY, finish_of

from vlatrack.metrics.grouping import grouped
from vlatrack.runner.directory import RunDirectory, write_in_run
from vlatrack.runner.endings import write_reason, write_traceback
from vlatrack.training.throughput import SPEEDS

SPEED = tuple(SPEEDS)


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").glob("step-*"))[-1] / "policy.safetensors").read_bytes()


def _train_records(records: list[dict]) -> dict[int, dict]:
    """Training metrics by step, the last value of each; without speeds, which no two runs share."""
    return {
        record["step"]: {k: v for k, v in record["data"].items() if not k.endswith(SPEED)}
        for record in records
        if record["kind"] == "metrics" and not any(name.startswith("system/") for name in record["data"])
    }


def test_a_run_leaves_everything_that_the_design_promises(finished_run: Path, journal_of) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {"spec.yaml", "manifest.json", "journal.jsonl", "delivery", "checkpoints", "report"}
    train, ind, ood = (
        _lines(finished_run / name) for name in ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt")
    )
    assert [line["epoch"] for line in train] == [line["epoch"] for line in ind] == [0, 1, 2]
    assert {f"train_l1_loss_action_{x}" for x in (7, 8, 9)} <= train[0].keys()
    assert {"val_closs", "val_loss_ct", "val_z_loss", "val_l1_loss_action_9"} <= ood[0].keys()
    assert train[-1]["train_closs"] < train[0]["train_closs"]
    records = journal_of(finished_run)
    assert [record["seq"] for record in records] == list(range(len(records)))
    kinds = [record["kind"] for record in records]
    start = records[0]["data"]
    began = datetime.strptime(finished_run.name[:15], "%Y%m%d-%H%M%S")
    assert start["name"] == f"toy · {began}", "nothing that decides the result was changed"
    assert start["tags"]["vlatrack.overrides"] == "tracking.figures=true"
    (end,) = [record for record in records if record["kind"] == "finish"]
    assert end["data"]["status"] == "FINISHED"
    assert set(kinds[end["seq"] + 1 :]) == {"artifact"}  # figures are drawn when nothing can change the status
    assert list((finished_run / "report").glob("losses.png"))


@happens(
    "disk",
    "the umask of a user lets everybody read and write new files",
    "the folder of a run, and all in it, is for that user alone all the same; others may create runs beside it",
)
def test_every_file_of_a_run_is_for_its_user_alone_whatever_the_umask(finished_run: Path) -> None:
    everything = list(finished_run.rglob("*"))
    names = {path.name for path in everything}
    assert {"manifest.json", "spec.yaml", "log_train.txt", "losses.png", "states.safetensors"} <= names
    assert stat.S_IMODE(finished_run.parent.stat().st_mode) == 0o777
    for path in (finished_run, *everything):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    stored = [path for path in (finished_run.parents[1] / ".cache" / "data").rglob("*") if path.is_file()]
    assert len(stored) >= 4
    for path in stored:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666, path  # which users may share


def test_files_that_say_why_a_run_failed_are_for_its_user_alone(tmp_path: Path) -> None:
    directory, usual = RunDirectory(tmp_path), os.umask(0)
    try:
        write_traceback(directory, ValueError("bad"))
        write_reason(directory, 1, ValueError("bad"))
        write_reason(directory, 2, KeyboardInterrupt())
        write_in_run(directory.manifest_file, "{}")
    finally:
        os.umask(usual)
    names = {"error.txt", "error-rank1.txt", "stopped-rank2.txt", "manifest.json"}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == dict.fromkeys(names, 0o600)


def test_manifest_says_what_the_run_was_made_of(finished_run: Path) -> None:
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["format"] == 2
    assert {"torch", "pip", "numpy", "scipy", "pytest"} <= manifest["packages"].keys()
    assert manifest["python"]["implementation"] == "CPython"
    assert {"root", "remote", "commit", "branch", "diff", "untracked"} <= manifest["git"].keys()
    assert manifest["data"]["train"]["episodes"] == list(range(9))
    assert len(manifest["spec_hash"]) == 64
    assert manifest["statistics"]["actions"]["low"]


@pytest.mark.slow
def test_resumed_run_matches_uninterrupted_run_bitwise(program, finished_run: Path, journal_of) -> None:
    process = program.start("run", TOY, "train.checkpoint.every_steps=5", "train.checkpoint.keep_last=99")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/3"):
            break
    process.kill()
    process.wait()
    run = program.only_run()
    assert journal_of(run)[-1]["kind"] != "finish"
    # Resume in the middle of the second of three epochs, long before the last thing that was logged.
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        if checkpoint.name > "step-00000020":
            shutil.rmtree(checkpoint)
    resumed = program.run("run", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert _weights(run) == _weights(finished_run)
    for name in ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt"):
        assert (run / name).read_text() == (finished_run / name).read_text()
    assert _train_records(journal_of(run)) == _train_records(journal_of(finished_run))


@pytest.mark.slow
def test_sigterm_ends_a_run_as_killed(program) -> None:
    process = program.start("run", TOY, "train.epochs=500")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/500"):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "continue it: vlatrack run --resume" in out
    assert finish_of(program.only_run())["status"] == "KILLED"


@pytest.fixture
def _heeding_ctrl_c() -> Iterator[None]:
    """A program inherits that SIGINT is ignored, as a shell's background jobs have it; not what is handled."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_heeding_ctrl_c")
def test_ctrl_c_ends_a_run_as_killed_with_everything_delivered(program, journal_of) -> None:
    process = program.start("run", TOY, "train.epochs=500", "tracking.backends=[{kind: mlflow}]")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/500"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "continue it: vlatrack run --resume" in out
    run = program.only_run()
    records = journal_of(run)
    assert finish_of(run)["status"] == "KILLED"
    assert finish_of(run)["reason"] == "interrupted from the keyboard"
    metrics = [record for record in records if record["kind"] == "metrics"]
    with closing(sqlite3.connect(program.folder / "runs" / "mlflow.db")) as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
        stored = set(store.execute("select key, timestamp, step, value from metrics"))
    logged = {(grouped(name), r["t_ms"], r["step"], value) for r in metrics for name, value in r["data"].items()}
    assert stored == logged


def test_a_run_that_dies_says_why_in_its_journal(program) -> None:
    done = program.run("run", TOY, "data.val_ood.options={fail_in_episode: 11}")
    assert done.returncode == 1
    finish = finish_of(program.only_run())
    assert finish["status"] == "FAILED"
    assert "the disk caught fire" in finish["reason"]
    assert "the disk caught fire" in (program.only_run() / "error.txt").read_text()


def test_evaluating_the_last_checkpoint_repeats_the_runs_own_numbers(program, finished_run: Path) -> None:
    done = program.run("evaluate", finished_run, "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    measured = json.loads((finished_run / "evaluation" / "step-00000045.json").read_text())
    logged = _lines(finished_run / "log_eval_ind.txt")[-1]
    assert measured["val_ind_closs"] == pytest.approx(logged["val_closs"], rel=1e-6)
    assert measured["val_ind_l1_loss_action_9"] == pytest.approx(logged["val_l1_loss_action_9"], rel=1e-6)


@pytest.mark.parametrize("file", ["policy.safetensors", pytest.param("policy.json", marks=pytest.mark.slow)])
def test_a_truncated_checkpoint_is_one_clear_line(program, finished_run: Path, file: str) -> None:
    run = program.folder / "runs" / "toy" / finished_run.name
    shutil.copytree(finished_run, run)
    for checkpoint in (run / "checkpoints").glob("step-*"):
        content = (checkpoint / file).read_bytes()
        (checkpoint / file).write_bytes(content[: len(content) // 2])
    done = program.run("evaluate", run, "--checkpoint", "last")
    assert done.returncode == 2
    assert f"{file}: truncated or altered" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

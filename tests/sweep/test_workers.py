"""Whole sweeps: real processes that train, are killed, and go on."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from program import finish_of
from sqlalchemy import create_engine, text
from wandb_file import offline_group

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = {
    "train.epochs": 300,
    "train.batch_size": 32,
    "train.checkpoint.every_epochs": 100,
    "evaluate.open_loop": {"every_epochs": 10, "max_samples": 16},
    "data.samples": ["vla"],
}


def first_lines(process: "subprocess.Popen[str]", until: str) -> list[str]:
    """What a sweep prints, up to the first line with this text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if until in line:
            return lines
    raise AssertionError(f"it ended without {until!r}: {lines}")


def begun_run(folder: Path, eventually) -> Path:
    """The run that has taken its first steps."""
    runs = folder / "runs" / "toy"
    eventually(lambda: any('"train_closs"' in file.read_text() for file in runs.glob("*/journal.jsonl")), 240)
    (run,) = runs.iterdir()
    return run


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def test_a_sweep_whose_worker_is_killed_goes_on_with_the_same_run_and_counts_it_once(
    program, sweep_file, eventually
) -> None:
    file = sweep_file(trials=1, overrides=LONG | {"train.max_steps": 40})
    process = program.start("sweep", file)
    first_lines(process, "trial 1/1 begins")
    run = begun_run(program.folder, eventually)
    os.kill(process.pid, signal.SIGKILL)  # the worker alone: its run notices, and ends with a checkpoint
    process.wait()
    done = program.run("sweep", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DONE 1 of 1 trials (1 complete)" in done.stdout
    assert [path.name for path in (program.folder / "runs" / "toy").iterdir()] == [run.name]
    assert finish_of(run)["status"] == "FINISHED"
    resumed = [record for record in journal(run) if record["kind"] == "event" and record["data"]["name"] == "resume"]
    assert len(resumed) == 1


def test_a_sweep_that_is_stopped_saves_its_trial_and_says_how_to_go_on(program, sweep_file, eventually) -> None:
    process = program.start("sweep", sweep_file(trials=1, overrides=LONG))
    first_lines(process, "trial 1/1 begins")
    run = begun_run(program.folder, eventually)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "go on: the same command" in out
    assert finish_of(run) | {"deliver_until_ms": 0} == {
        "status": "KILLED",
        "reason": "interrupted from the keyboard",
        "deliver_until_ms": 0,
    }
    (waiting,) = program.run("sweep", process.args[-1], "--status").stdout.splitlines()[:1]
    assert waiting.startswith("trial 1/1 stopped")


def test_two_workers_share_a_sweep_and_one_trial_that_fails_ends_nothing(program, sweep_file) -> None:
    space = {
        "loss.loss_ct_weights": {"choices": [1, 10]},
        "optim.lr": {"choices": [1e-3, 1e30]},
    }  # no weight lives that
    file = sweep_file(space=space, sampler={"kind": "grid"}, trials=None)
    workers = [program.start("sweep", file) for _ in range(2)]
    outs = [worker.communicate(timeout=500) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    begun = [re.findall(r"trial (\d)/4 begins", out) for out, _ in outs]
    assert sorted(begun[0] + begun[1]) == ["1", "2", "3", "4"]
    assert "DONE 4 of 4 trials (2 complete, 2 failed)" in outs[0][0], outs
    failed = [line for out, _ in outs for line in out.splitlines() if " failed " in line and line.startswith("trial")]
    assert len(failed) == 2
    assert all("loss or gradient is not finite" in line for line in failed), failed


def test_a_pruned_trial_is_a_run_that_says_so(program, sweep_file) -> None:
    two = {"train.epochs": 2, "train.batch_size": 64, "evaluate.open_loop": {"max_samples": 16}}
    keys = {"overrides": LONG | two, "space": {"optim.lr": {"choices": [1e-2, 1e-6]}}, "sampler": {"kind": "grid"}}
    file = sweep_file(**keys, trials=None, pruner={"kind": "median", "startup_trials": 1})
    done = program.run("sweep", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DONE 2 of 2 trials (1 complete, 1 pruned)" in done.stdout
    ends = [finish_of(run) for run in sorted((program.folder / "runs" / "toy").iterdir())]
    assert [end["status"] for end in ends] == ["FINISHED", "KILLED"]
    assert re.match(r"pruned after epoch [12]: val_ind_loss_ct 0\.\d+", ends[1]["reason"])


def test_the_trials_are_children_of_one_run_at_an_mlflow_server_and_a_group_in_wandb_offline(
    program, sweep_file, mlflow_server: MlflowServer
) -> None:
    backends = [{"kind": "mlflow", "tracking_uri": mlflow_server.url}, {"kind": "wandb", "mode": "offline"}]
    short = {"train.max_steps": 4, "train.batch_size": 32, "data.samples": ["vla"], "evaluate.open_loop": None}
    of_trials = {"name": "toy-in-group", "tracking.backends": backends} | short
    file = sweep_file(
        trials=2, name="grouped", overrides=of_trials, objectives=[{"metric": "train_loss_ct"}], parallel=2
    )
    done = program.run("sweep", file)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("toy-in-group")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("grouped", "FINISHED")
    children = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert len({child.data.params["optim.lr"] for child in children}) == 2
    files = list((program.folder / "runs" / "toy-in-group").glob("*/wandb/offline-run-*/*.wandb"))
    assert [offline_group(path) for path in files] == ["grouped", "grouped"]


def test_postgresql_holds_a_sweep_of_workers_that_share_no_folder(program, sweep_file, tmp_path: Path) -> None:
    from postgres_server import PostgresServer, find_programs

    pytest.importorskip("psycopg2", reason="psycopg2, the driver of PostgreSQL, is not installed")
    if (programs := find_programs()) is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    file = sweep_file(trials=2)
    with PostgresServer(programs) as server:
        workers = [
            program.start("sweep", file, "--runs", tmp_path / name, VLATRACK_SWEEP_STORAGE=server.uri)
            for name in ("here", "there")
        ]
        outs = [worker.communicate(timeout=500) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], outs
        assert all("DONE 2 of 2 trials (2 complete)" in out for out, _ in outs)
        assert sum(out.count("begins") for out, _ in outs) == 2
        with create_engine(server.uri).connect() as connection:
            stored = connection.execute(text("select state, count(*) from trials group by state")).fetchall()
        assert [tuple(row) for row in stored] == [("COMPLETE", 2)]


def test_a_mistake_in_a_sweep_is_one_line_and_exit_code_2(program, sweep_file) -> None:
    done = program.run("sweep", sweep_file(objectives=[{"metric": "val_ind_los_ct"}]))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("no metric is called val_ind_los_ct (did you mean val_ind_loss_ct?)")
    assert len(done.stderr.strip().splitlines()) == 1

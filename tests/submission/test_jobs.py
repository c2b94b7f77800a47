"""Jobs in real processes of submitit's local executor: interrupted, killed, begun again."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from program import TOY, Program, finish_of

from vlatrack.cli.submitted import SubmittedRun, _requeue
from vlatrack.errors import SubmitError
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.submission.folder import JobFolder, Order
from vlatrack.tracking.lock import FileLock

QUICK = ("train.max_steps=2", "train.checkpoint.every_steps=1", "evaluate.open_loop=null", "data.samples=[vla]")
TWO_EPOCHS = ("train.epochs=2", "tracking.log_every=1", "evaluate.open_loop=null", "data.samples=[vla]")


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobFolder:
    """This process is one of a job, whose folder this is; its experiment takes two steps."""
    for name, value in {"JOB_ID": "17", "NTASKS": "1", "GLOBALID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    folder = JobFolder.planned(tmp_path / "runs", "toy")
    order = Order(directory=tmp_path, runs=tmp_path / "runs", command=("vlatrack", "submit"))
    folder.create(order, dump_spec(load_spec(TOY, QUICK)))
    return folder


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that submitit's handler, which asks for another turn, would have got."""
    from submitit import JobEnvironment

    monkeypatch.setattr(JobEnvironment, "USR_SIG", "USR1")
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
    yield told
    signal.signal(signal.SIGUSR1, before)


def test_a_job_that_comes_no_further_is_not_queued_again_for_ever(in_job: JobFolder, preempted: list[int]) -> None:
    for _ in range(2):
        in_job.note_start(0)
    with pytest.raises(SystemExit):
        _requeue(in_job)
    assert preempted == [signal.SIGUSR1]
    in_job.note_start(0)
    with pytest.raises(SubmitError, match=r"began 3 times at step 0 and came no further.*more --time"):
        _requeue(in_job)
    assert preempted == [signal.SIGUSR1]


def test_other_ranks_leave_the_queue_to_the_first_and_end_well(in_job, preempted, monkeypatch) -> None:
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "1")
    with pytest.raises(SystemExit) as end:
        _requeue(in_job)
    assert end.value.code == 0


def _killed(run: Path) -> None:
    """As if its process had been killed between its first and its second step."""
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if json.loads(line)["step"] == 2)
    (run / "journal.jsonl").write_text("".join(lines[:second]))
    shutil.rmtree(run / "checkpoints" / "step-00000002")


@pytest.mark.slow
def test_a_job_whose_process_was_killed_goes_on_with_the_same_run_when_it_begins_again(in_job: JobFolder) -> None:
    SubmittedRun(in_job.path)()
    run = in_job.noted_run()
    assert run is not None
    assert finish_of(run)["status"] == "FINISHED"
    weights = {file.name: file.read_bytes() for file in (run / "checkpoints" / "step-00000002").glob("*.safetensors")}
    _killed(run)
    SubmittedRun(in_job.path)()  # as Slurm does after a machine has failed
    assert [path for path in run.parent.iterdir() if path.is_dir()] == [run]
    assert in_job.starts() == [0, 1]
    again = {file.name: file.read_bytes() for file in (run / "checkpoints" / "step-00000002").glob("*.safetensors")}
    assert again == weights


@pytest.mark.slow
def test_a_run_that_is_done_or_trains_elsewhere_is_not_submitted(submit, tmp_path: Path) -> None:
    run = run_experiment(load_spec(TOY, QUICK), runs=tmp_path / "runs").path
    words = ("--resume", str(run), "--cluster", "local")
    assert str(submit(*words, file=None).exception).startswith(f"nothing left to train: {run} is done after 2 steps")
    assert "would go on as another experiment" in str(submit(*words, "optim.lr=1", file=None).exception)
    _killed(run)
    written = FileLock.acquire(run / "journal.jsonl")
    said = str(submit(*words, file=None).exception)
    written.release()
    assert (
        said
        == f"{run}: another process ({os.getpid()} on {os.uname().nodename}) trains it just now; wait for it or stop it"
    )
    assert not (tmp_path / "runs" / "jobs").exists()


@pytest.fixture
def controllers() -> Iterator[list[psutil.Process]]:
    """submitit's processes, which outlive the command that starts them; they and theirs are ended."""
    started: list[psutil.Process] = []
    yield started
    for process in started:
        if process.is_running():
            family = [process, *process.children(recursive=True)]
            for member in family:
                member.kill()


def _files(run: Path) -> dict[str, bytes]:
    """What a training has computed."""
    files = [*run.glob("log_*.txt"), *(run / "checkpoints").glob("*/*.safetensors")]
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_job_of_two_processes_ends_with_the_bits_of_an_uninterrupted_run(
    program: Program, controllers: list[psutil.Process], eventually
) -> None:
    done = program.run_many("run", TOY, *TWO_EPOCHS, "--runs", "whole")
    assert done.returncode == 0, done.stderr
    (whole,) = (program.folder / "whole" / "toy").iterdir()
    submitted = program.start("submit", TOY, *TWO_EPOCHS, "--cluster", "local", "--processes", "2", OMP_NUM_THREADS="1")
    out, err = submitted.communicate(timeout=120)
    found = re.search(r"SUBMITTED job (\d+) \(local\)", out)
    assert found is not None, err
    controllers.append(psutil.Process(int(found[1])))
    journals = program.folder / "runs" / "toy"
    eventually(lambda: any('"train_closs"' in file.read_text() for file in journals.glob("*/journal.jsonl")), 120)
    for task in controllers[0].children():
        task.send_signal(signal.SIGUSR1)
    run = program.only_run()
    eventually(lambda: (run / "log_train.txt").exists() and "FINISHED" in (run / "journal.jsonl").read_text(), 120)
    controllers[0].wait(60)
    assert _files(run) == _files(whole)
    (job,) = (program.folder / "runs" / "jobs").iterdir()
    starts = JobFolder(job).starts()
    assert starts[0] == 0
    assert len(starts) == 2
    assert starts[1] > 0
    (state,) = map(json.loads, program.run("status", "--json").stdout.splitlines())
    assert (state["status"], state["job"]) == ("FINISHED", f"local {found[1]}")

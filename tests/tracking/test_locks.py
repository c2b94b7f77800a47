"""Who writes a run, told by flock, and by leases where flock is missing or local to a host."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from happens import happens
from launching import running
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import TrackerError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking import lock
from vlatrack.tracking.delivery import supervisor
from vlatrack.tracking.delivery.supervisor import end_delivery
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import Journal, is_being_written
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.lock import FileLock, Holder, LockHeldError, lock_holder, process_here, settled_holder
from vlatrack.tracking.privacy import private_directory
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=errno.errorcode.get)
def _no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", missing)


@pytest.fixture
def other_process() -> Iterator[Holder]:
    """A living process of this host."""
    with running([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        holder = process_here(process.pid)
        assert holder is not None
        yield holder
        process.communicate("\n")  # by itself: some of the tests put something else in place of os.kill


def here() -> Holder:
    holder = process_here(os.getpid())
    assert holder is not None
    return holder


def on_another_host(pid: int = 4711) -> Holder:
    return Holder("node-7", pid, 99, "another boot", "pid:[4026531836]")


def leave_lease(path: Path, holder: Holder, *, age_s: float = 0.0) -> None:
    """As a process does that holds the lock of `path`, and gave its last heartbeat so long ago."""
    path.touch()
    lease = path.with_suffix(".lease")
    lease.write_text(json.dumps(dataclasses.asdict(holder)))
    os.utime(lease, (time.time() - age_s,) * 2)


def test_a_lock_leaves_a_lease_while_it_is_held(path: Path) -> None:
    held = FileLock.acquire(path)
    assert lock_holder(path) == here()
    with pytest.raises(LockHeldError, match=f"another process \\({os.getpid()} on "):
        FileLock.acquire(path)
    held.release()
    assert lock_holder(path) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("_no_flock")
def test_without_flock_one_writer_at_a_time_writes_a_journal(path: Path) -> None:
    journal = Journal.open(path, run="r", writer="trainer")
    journal.append("event", {})
    assert is_being_written(path)
    with pytest.raises(TrackerError, match=r"another process .* is writing this run"):
        Journal.open(path, run="r", writer="trainer")
    journal.close()
    assert not is_being_written(path)
    Journal.open(path, run="r", writer="trainer").close()
    assert len(list(read_records(path))) == 1


@pytest.mark.usefixtures("_no_flock")
def test_without_flock_a_living_process_of_this_host_holds_its_lock_and_a_dead_one_does_not(
    path: Path, other_process: Holder
) -> None:
    leave_lease(path, other_process)
    assert lock_holder(path) == other_process
    leave_lease(path, dataclasses.replace(other_process, started=other_process.started + 1))  # its pid was recycled
    assert lock_holder(path) is None
    FileLock.acquire(path).release()


@pytest.mark.parametrize(
    ("change", "age_s", "held"),
    [
        ({"host": "node-7"}, 0, True),
        ({"host": "node-7"}, 61, False),
        ({"boot_id": "another"}, 0, True),
        ({"boot_id": "another"}, 61, False),
        ({"pid_namespace": "pid:[1]"}, 0, True),
        ({"pid_namespace": "pid:[1]"}, 61, False),
        ({"pid_namespace": "pid:[1]"}, -5, True),  # its clock is ahead of ours
        ({}, 0, False),  # flock tells of this host that nobody holds it
    ],
)
def test_a_lease_of_elsewhere_counts_while_its_heartbeat_is_fresh(
    path: Path, change: dict[str, str], age_s: float, held: bool
) -> None:
    holder = dataclasses.replace(here(), **change)
    leave_lease(path, holder, age_s=age_s)
    assert lock_holder(path) == (holder if held else None)
    if held:
        with pytest.raises(TrackerError, match="is writing this run; wait for it or stop it"):
            Journal.open(path, run="r", writer="trainer")
    else:
        Journal.open(path, run="r", writer="trainer").close()
        assert not path.with_suffix(".lease").exists()


def test_whoever_waits_for_a_lease_of_elsewhere_learns_whether_its_holder_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_SETTLING_POLL_S", 0.01)
    with monkeypatch.context() as soon:
        soon.setattr(lock, "ALIVE_S", 0.5)
        leave_lease(path, on_another_host())
        assert settled_holder(path) is None  # as of a container that was killed
    leave_lease(path, on_another_host())

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("it has waited on after the heartbeat"))
        os.utime(path.with_suffix(".lease"))

    monkeypatch.setattr(lock.time, "sleep", sleep)
    assert settled_holder(path) == on_another_host()


def test_a_journal_of_before_is_judged_by_flock_alone(path: Path) -> None:
    path.touch()
    assert lock_holder(path) is None
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(path) == Holder()
        assert is_being_written(path)
    path.with_suffix(".lease").write_text("{")
    assert lock_holder(path) is None


def test_the_heartbeat_goes_on_in_the_background(
    path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.0)
    monkeypatch.setattr("vlatrack.tracking.journal.journal.SYNC_INTERVAL_S", 0.01)
    journal = Journal.open(path, run="r", writer="trainer")
    lease = path.with_suffix(".lease")
    for _ in range(2):
        os.utime(lease, (0, 0))
        eventually(lambda: lease.stat().st_mtime > 0)
    lease.unlink()
    eventually(lease.exists)
    journal.close()
    assert not lease.exists()


def test_a_run_of_another_host_is_neither_reaped_nor_synchronised_while_it_lives(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(3)
    runs, journal = run.dir.parent.parent, RunFiles(run.dir).journal
    leave_lease(journal, on_another_host())
    assert run_status(run.dir).status == "RUNNING"
    with pytest.raises(TrackerError, match=r"still running, another process \(4711 on node-7\) writes it"):
        sync_run(run.dir)
    assert "RUNNING on node-7" in _call("status", "--runs", runs)
    reaped = _call("reap", "--runs", runs)
    assert f"{run.dir}: written by another process (4711 on node-7)\nno stale runs" in reaped
    assert run_status(run.dir).status == "RUNNING"

    leave_lease(journal, on_another_host(), age_s=100)
    assert "RUNNING on node-7 (stale)" in _call("status", "--runs", runs)
    assert f"{run.dir}: was written by another process (4711 on node-7)" in _call("reap", "--runs", runs)
    assert run_status(run.dir).status == "KILLED"


@happens(
    "place",
    "the folder of a run that is being written is copied",
    "`status` shows the copy as RUNNING; `sync` and `reap` write no end into it and name the original",
)
def test_a_copy_of_a_living_run_is_never_ended(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path)
    run.log(3)
    copies = tmp_path / "copies"
    copy = copies / "contract" / "run-1"
    with contextlib.closing(Journal.open(RunFiles(run.dir).journal, run=run.uid, writer="trainer")):
        shutil.copytree(tmp_path / "runs", copies)
        _shown_as_a_copy(copies, f"{copy}: a copy of {run.dir} on {here().host}, of before its end; sync that one")
        with pytest.raises(TrackerError, match=r"another process .* is writing this run"):
            Journal.open(copy / "journal.jsonl", run=run.uid, writer="trainer")
    assert run_status(run.dir).status == "KILLED"
    assert "KILLED" not in (copy / "journal.jsonl").read_text()


def _shown_as_a_copy(runs: Path, told: str) -> None:
    """The commands refuse to end the only run of this folder."""
    assert "(a copy)" in _call("status", "--runs", runs)
    reaped = _call("reap", "--runs", runs)
    assert f"{told}, or remove journal.lease if it is lost\nno stale runs in {runs}" in reaped
    with pytest.raises(TrackerError, match=re.escape(told)):
        sync_run(runs / "contract" / "run-1")
    assert run_status(runs / "contract" / "run-1").status == "RUNNING"


def _dead_run(folder: Path, holder: Holder, *, age_s: float) -> ExampleRun:
    run = ExampleRun(folder)
    run.log(3)
    journal = RunFiles(run.dir).journal
    locked = dataclasses.replace(holder, inode=journal.stat().st_ino, path=str(journal))
    leave_lease(journal, locked, age_s=age_s)
    return run


def test_a_dead_run_of_this_host_is_ended_where_it_was_moved_to_but_not_in_a_copy(
    tmp_path: Path, other_process: Holder
) -> None:
    dead = dataclasses.replace(other_process, started=other_process.started + 1)
    run = _dead_run(tmp_path, dead, age_s=100)
    shutil.copytree(tmp_path / "runs", tmp_path / "copies")
    _shown_as_a_copy(tmp_path / "copies", f"a copy of {run.dir} on {dead.host}, of before its end; sync that one")
    shutil.rmtree(tmp_path / "runs")  # it was moved to another disk
    _call("reap", "--runs", tmp_path / "copies")
    assert run_status(tmp_path / "copies" / "contract" / "run-1").status == "KILLED"

    run = _dead_run(tmp_path, dead, age_s=100)
    (tmp_path / "runs").rename(tmp_path / "moved")
    _call("reap", "--runs", tmp_path / "moved")
    assert run_status(tmp_path / "moved" / "contract" / "run-1").status == "KILLED"


def test_a_copy_of_a_run_of_another_host_is_not_ended_unless_its_lease_is_removed(tmp_path: Path) -> None:
    run = _dead_run(tmp_path, on_another_host(), age_s=100)
    shutil.copytree(tmp_path / "runs", tmp_path / "copies")
    _shown_as_a_copy(tmp_path / "copies", f"a copy of {run.dir} on node-7, of before its end; sync that one")
    (tmp_path / "copies" / "contract" / "run-1" / "journal.lease").unlink()
    sync_run(tmp_path / "copies" / "contract" / "run-1")
    assert run_status(tmp_path / "copies" / "contract" / "run-1").status == "KILLED"
    sync_run(run.dir)
    assert run_status(run.dir).status == "KILLED"


def test_the_delivery_process_of_the_original_is_not_ended_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_process: Holder
) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.05)
    original = RunFiles(tmp_path / "runs" / "e" / "r")
    private_directory(original.delivery)
    original.delivery_lock.touch()
    leave_lease(original.delivery_lock, dataclasses.replace(other_process, inode=original.delivery_lock.stat().st_ino))
    shutil.copytree(tmp_path / "runs", tmp_path / "copies")
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: signalled.append(pid))
    with pytest.raises(TrackerError, match="still delivers this run; wait for it"):
        end_delivery(RunFiles(tmp_path / "copies" / "e" / "r"))
    assert signalled == []


def test_a_delivery_process_of_elsewhere_or_with_a_recycled_pid_is_never_signalled(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, other_process: Holder
) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.05)
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: signalled.append(pid))
    files = RunFiles(run_dir)
    private_directory(files.delivery)
    leave_lease(files.delivery_lock, on_another_host(other_process.pid))
    with pytest.raises(TrackerError, match=r"run-1: another process \(\d+ on node-7\) still delivers this run"):
        TrackedRun.start(run_dir, uid="u", name="n", experiment="e", backends=[], params={}, tags={})
    recycled = dataclasses.replace(other_process, started=other_process.started + 1)
    with files.delivery_lock.open("rb") as held_by_nobody_known:
        fcntl.flock(held_by_nobody_known, fcntl.LOCK_EX)
        leave_lease(files.delivery_lock, recycled)
        with pytest.raises(TrackerError, match="does not end; stop it and try again"):
            end_delivery(files)
        assert signalled == []
        leave_lease(files.delivery_lock, other_process)
        with pytest.raises(TrackerError, match="does not end"):
            end_delivery(files)
        assert signalled == [other_process.pid] * 2


def _call(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output

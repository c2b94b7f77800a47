"""What threads, signals and forks of a training do to its run: nothing."""

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from happens import happens

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.journal import Journal, is_being_written
from vlatrack.tracking.journal.records import Record, finish_record, last_record, read_records
from vlatrack.tracking.run import BackendConfig, TrackedRun, metric_history, run_status, start_run

CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")


def records(run_dir: Path) -> list[Record]:
    found = list(read_records(run_dir / "journal.jsonl"))
    assert [record.seq for record in found] == list(range(len(found)))
    return found


def start(run_dir: Path, **changes: Any) -> TrackedRun:
    fields = {"uid": "u", "name": "n", "experiment": "exp", "backends": [], "params": {}, "tags": {}, **changes}
    return TrackedRun.start(run_dir, **fields)


@contextlib.contextmanager
def logging_thread(run: TrackedRun, pause_s: float) -> Iterator[threading.Event]:
    """A thread that logs until the block ends; the event is set once it has."""
    stopping, has_logged = threading.Event(), threading.Event()

    def log() -> None:
        step = 0
        while not stopping.wait(pause_s):
            run.log({"a": 1.0}, step=step)
            has_logged.set()
            step += 1

    thread = threading.Thread(target=log)
    thread.start()
    try:
        yield has_logged
    finally:
        stopping.set()
        thread.join()


@happens(
    "process",
    "a thread goes on logging while the run finishes",
    "the run is FINISHED; what the thread logs after the end is left out with one warning",
)
@pytest.mark.parametrize("pause_s", [0.001, 0])
def test_a_thread_that_logs_while_the_run_finishes_changes_nothing_of_its_end(tmp_path: Path, pause_s: float) -> None:
    seen: Counter[str] = Counter()
    for _ in range(30):
        run = start_run("exp", runs=tmp_path / "runs", backends=[])
        with logging_thread(run, pause_s) as has_logged:
            assert has_logged.wait(60)
            run.finish("FINISHED")
            time.sleep(pause_s)  # the thread logs once more
        seen[run_status(run.path).status] += 1
        assert records(run.path)[-1].kind == "finish"
        assert run._journal.lost == 0
    assert seen == {"FINISHED": 30}


def test_the_trackers_of_a_run_that_a_thread_logs_to_hear_of_its_end(tmp_path: Path) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[CSV])
    with logging_thread(run, 0.001) as has_logged:
        assert has_logged.wait(60)
        assert run.finish("FINISHED").complete
    assert json.loads((run.path / "csv" / "run.json").read_text())["status"] == "FINISHED"


def test_of_threads_that_end_a_run_at_once_the_first_decides(tmp_path: Path) -> None:
    for _ in range(20):
        run = start_run("exp", runs=tmp_path / "runs", backends=[])
        barrier = threading.Barrier(4)

        def end(status: Any, run: TrackedRun = run, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            run.end(status)

        threads = [
            threading.Thread(target=end, args=(status,)) for status in ("FINISHED", "FAILED", "KILLED", "FAILED")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run.close()
        assert [record.kind for record in records(run.path)] == ["start", "finish"]


class interrupting_at:  # noqa: N801  # reads as a verb
    """Ctrl-C at the n-th line that vlatrack's journal and run execute in the block; `reached` says whether there was
    one."""

    def __init__(self, line: int) -> None:
        self._left = line
        self.reached = False

    def _trace(self, frame: types.FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(("tracking/run.py", "journal/journal.py")):
            return None
        if event == "line" and not self.reached:
            self._left -= 1
            if self._left == 0:
                self.reached = True
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> "interrupting_at":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


@happens(
    "process",
    "Ctrl-C comes while a value is being logged, wherever in that",
    "the value is in the journal as a whole or not at all, and the next one has the next number",
)
def test_an_interrupted_record_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.jsonl", run="r", writer="trainer")
    journal.append("start", {})
    for line in range(1, 100):
        with contextlib.suppress(KeyboardInterrupt), interrupting_at(line) as interrupt:
            journal.append("metrics", {"interrupted": line}, step=line)
        journal.append("metrics", {"next": line}, step=line)
        if not interrupt.reached:
            break
    assert 10 < line < 99
    journal.close()
    found = records(tmp_path)
    assert [r.step for r in found if "next" in r.data] == list(range(1, line + 1))
    interrupted = [r.step for r in found if "interrupted" in r.data]
    assert 1 < len(interrupted) == len(set(interrupted)) < line


def test_an_interrupted_end_of_a_run_is_not_followed_by_metrics(tmp_path: Path) -> None:
    for line in range(1, 100):
        path = tmp_path / str(line) / "journal.jsonl"
        path.parent.mkdir()
        journal = Journal.open(path, run="r", writer="trainer")
        journal.append("start", {})
        with contextlib.suppress(KeyboardInterrupt), interrupting_at(line) as interrupt:
            journal.append("finish", {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
        has_ended = finish_record(path) is not None
        assert (journal.append("metrics", {"late": 1.0}, step=1) is None) == has_ended
        journal.close()
        records(path.parent)
        if not interrupt.reached:
            break
    assert 10 < line < 99


def test_what_is_left_of_a_line_when_the_disk_is_full_and_ctrl_c_comes_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal.open(path, run="r", writer="trainer")
    journal.append("event", {"a": 1})

    def half(fd: int, line: bytes) -> int:
        write(fd, line[: len(line) // 2])
        raise KeyboardInterrupt

    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(KeyboardInterrupt):
            journal.append("event", {"b": 2})
    assert not path.read_bytes().endswith(b"\n")
    journal.append("event", {"c": 3})
    journal.close()
    assert [record.data for record in records(tmp_path)] == [{"a": 1}, {"c": 3}]


@contextlib.contextmanager
def signals(handler: Callable[[types.FrameType | None], object], *, every_s: float) -> Iterator[None]:
    """Another process sends signals all the time; the handler may itself be interrupted by another one, but once."""
    depth = [0]

    def handle(number: int, frame: types.FrameType | None) -> None:
        if depth[0] < 2:
            depth[0] += 1
            try:
                handler(frame)
            finally:
                depth[0] -= 1

    gc.disable()  # the collector calls back code of others, which reports what the handler raises there
    before = signal.signal(signal.SIGUSR2, handle)
    this = os.getpid()
    if (sender := os.fork()) == 0:
        while os.getppid() == this:  # until this process ends, however it does
            os.kill(this, signal.SIGUSR2)
            time.sleep(every_s)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)
        signal.signal(signal.SIGUSR2, before)
        gc.enable()


@happens(
    "process",
    "a signal handler logs while the training does",
    "both records are in the journal, each with a number of its own",
)
def test_a_signal_handler_may_log_while_the_training_does(tmp_path: Path) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    handled = [0]

    def log(_: object) -> None:
        handled[0] += 1
        run.log({"of_handler": 1.0}, step=handled[0])

    steps = 0
    with signals(log, every_s=0.0003):
        while handled[0] < 1500:
            run.log({"of_training": 1.0}, step=steps)
            steps += 1
    run.finish("FINISHED")
    names = Counter(name for record in records(run.path) if record.kind == "metrics" for name in record.data)
    assert names == {"of_training": steps, "of_handler": handled[0]}


def test_a_signal_handler_may_end_the_run_while_the_training_logs(tmp_path: Path) -> None:
    for _ in range(10):
        run = start_run("exp", runs=tmp_path / "runs", backends=[])
        with signals(lambda _, run=run: run.finish("KILLED", reason="a signal"), every_s=0.001):
            while not run._journal._released:
                run.log({"a": 1.0}, step=1)
        assert (run_status(run.path).status, run_status(run.path).reason) == ("KILLED", "a signal")
        assert records(run.path)[-1].kind == "finish"


def test_interrupts_at_any_moment_leave_no_gap(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.jsonl", run="r", writer="trainer")
    interrupts = [0]

    def interrupt(frame: types.FrameType | None) -> None:
        while frame is not None and frame.f_code is not Journal.append.__code__:
            frame = frame.f_back
        if frame is not None:
            interrupts[0] += 1
            raise TimeoutError

    step = 0
    with signals(interrupt, every_s=0.0005):
        while interrupts[0] < 300:
            step += 1
            with contextlib.suppress(TimeoutError):
                journal.append("metrics", {"a": 1.0}, step=step)
    journal.close()
    steps = [record.step for record in records(tmp_path)]
    assert len(steps) == len(set(steps)) > step - 300 - 1


@happens(
    "process",
    "Ctrl-C comes while a run starts, wherever in that",
    "its lock is free, a run that had begun is KILLED, and the same process can start it again",
)
def test_an_interrupted_start_leaves_no_lock_and_can_be_repeated(run_dir: Path) -> None:
    interrupted_runs = 0
    for line in range(1, 300):
        here = run_dir.with_name(f"run-{line}")
        run = None
        with contextlib.suppress(KeyboardInterrupt), interrupting_at(line) as interrupt:
            run = start(here)
        if not interrupt.reached:
            break
        assert run is None
        assert not is_being_written(here / "journal.jsonl")
        assert not any(thread.name == "journal-sync" for thread in threading.enumerate()), interrupt
        if (here / "journal.jsonl").exists() and last_record(here / "journal.jsonl") is not None:
            interrupted_runs += 1
            assert run_status(here).status == "KILLED"
        with start(here) as run:
            run.log({"a": 1.0}, step=1)
        assert run_status(here).status == "FINISHED"
        records(here)
    assert run is not None
    run.finish("FINISHED")
    assert 50 < line < 299
    assert interrupted_runs > 5
    assert not any(thread.name == "journal-sync" for thread in threading.enumerate())


def test_a_start_that_is_interrupted_with_its_delivery_lets_that_go_on_alone(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    from vlatrack.tracking.delivery.supervisor import DeliveryProcess

    spawn = DeliveryProcess._spawn

    def interrupted(delivery: DeliveryProcess) -> None:
        spawn(delivery)
        raise KeyboardInterrupt

    monkeypatch.setattr(DeliveryProcess, "_spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(run_dir, backends=[CSV])
    assert not is_being_written(run_dir / "journal.jsonl")
    told = run_dir / "csv" / "run.json"
    eventually(lambda: told.exists() and json.loads(told.read_text()).get("status") == "KILLED")
    eventually(lambda: not any(thread.name == "delivery-left" for thread in threading.enumerate()))


def in_fork(do: Callable[[], object]) -> str:
    """Call it in a forked child; returns what it printed, or the error that it raised."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            answer = repr(do())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


@happens(
    "process",
    "a forked child leaves the with block of a run, or ends it",
    "that returns at once and changes nothing; the run of the parent goes on",
)
@pytest.mark.parametrize("backends", [[], [CSV]])
def test_a_forked_child_has_no_part_in_the_end_of_a_run(tmp_path: Path, backends: list[BackendConfig]) -> None:
    with start_run("exp", runs=tmp_path / "runs", backends=backends) as run:
        run.log({"a": 1.0}, step=1)

        def leave() -> str:
            time.sleep = threading.Condition.wait = lambda *_, **__: pytest.fail("it waits")
            run.__exit__(ValueError, ValueError("of the child"), None)
            for end in (run.end, run.finish):
                end("FAILED")
            run.close()
            run.sync()
            return "left"

        assert in_fork(leave) == repr("left")
        assert is_being_written(run.path / "journal.jsonl")
        assert run_status(run.path).status == "RUNNING"
        process = None if run._delivery is None else run._delivery._process
        assert process is None or process.poll() is None
        run.log({"a": 2.0}, step=2)
    assert run.close().complete
    assert [record.kind for record in records(run.path)] == ["start", "metrics", "metrics", "finish"]


@happens(
    "process",
    "forked workers log to the run of their parent",
    "their records are dropped with a warning that names them, and counted when the run closes",
)
def test_what_forked_workers_log_is_counted_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    (run.path / "a.txt").write_text("a")
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w"))
    logging.getLogger("vlatrack").addHandler(handler)

    def work() -> None:
        for step in range(100):
            run.log({"of_worker": 1.0}, step=step)
        run.event("evaluated", {})
        run.log_artifact("a.txt", name="a.txt")

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work) for _ in range(3)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        run.finish("FINISHED")
    finally:
        logging.getLogger("vlatrack").removeHandler(handler)
        handler.stream.close()
    said = capfd.readouterr().err.splitlines()
    assert any(
        "a fork of the one that started the run, cannot log of_worker; log in the process" in line for line in said
    )
    assert sum("306 records of forked processes were not logged" in line for line in said) == 1
    assert len(said) < 5
    assert [record.kind for record in records(run.path)] == ["start", "finish"]


def test_a_fork_while_a_thread_logs_does_not_hang_the_child(tmp_path: Path) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    with logging_thread(run, 0) as has_logged:
        assert has_logged.wait(60)
        for _ in range(40):
            if (pid := os.fork()) == 0:
                signal.alarm(20)  # ends a child that hangs
                run.log({"of_child": 1.0}, step=1)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    run.finish("FINISHED")
    assert set(metric_history(run.path / "journal.jsonl")) == {"a"}


def test_a_forked_child_cannot_start_the_run_that_its_parent_writes(run_dir: Path) -> None:
    with start(run_dir) as run:
        told = in_fork(lambda: start(run_dir))
        assert f"TrackerError: {run_dir}/journal.jsonl: another process ({os.getpid()} on " in told
        assert "is writing this run; wait for it or stop it" in told
        run.log({"a": 1.0}, step=1)
    assert [record.kind for record in records(run_dir)] == ["start", "metrics", "finish"]


def test_a_run_cannot_be_sent_to_a_spawned_worker(run_dir: Path) -> None:
    with start(run_dir) as run, pytest.raises(TrackerError, match="log in the process that started it"):
        pickle.dumps(run)


def test_a_journal_whose_folder_was_moved_still_knows_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    journal = Journal.open(tmp_path / "before" / "journal.jsonl", run="r", writer="trainer")
    journal.append("event", {})
    (tmp_path / "before").rename(tmp_path / "after")
    for line in range(1, 40):
        with contextlib.suppress(KeyboardInterrupt), interrupting_at(line):
            journal.append("event", {})
    journal.close()
    assert len(records(tmp_path / "after")) > 10

"""Worker processes with simulators, as seen by the process that asks them: started, watched and ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import FrameType
from typing import IO

from vlatrack import errors
from vlatrack.envs.worker import Answer, Check, Checked, Close, Failed, Open, Opened, Refused, Request
from vlatrack.errors import DataError, SimulatorError, VlatrackError

ATTEMPTS = 3
"""Of an episode whose worker breaks, all together."""
EPISODES_PER_WORKER = 20
"""After so many a worker is replaced, as simulators and their rendering leak."""
CLOSING_S = 5.0
"""Seconds in which a simulator may close itself."""


@dataclass(frozen=True)
class Simulator:
    """Everything that a worker needs to be started."""

    name: str  # see `vlatrack.envs.base.make_environment`
    options: Mapping[str, object]
    timeout_s: float  # for each answer, the first of which includes starting the process
    log: Path | None = None  # gets what the workers print


class WatchedWorker:
    """One worker process. An answer that does not come in time counts as failed, as does the end of the process."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._deadline: float | None = None
        ours, theirs = Pipe()
        read_end, self._lifeline = os.pipe()
        with (simulator.log or Path(os.devnull)).open("ab") as log, theirs:
            self._process = _started(theirs, read_end, log)
        os.close(read_end)
        self.connection = ours
        self.ask(Open(simulator.name, simulator.options))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds_left(self) -> float:
        """Until the answer that is awaited is too late."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    @property
    def is_asked(self) -> bool:
        """Whether an answer is awaited."""
        return self._deadline is not None

    def ask(self, request: Request) -> None:
        """Send a request; the answer is read by `answer`."""
        self._deadline = time.monotonic() + self.simulator.timeout_s
        with contextlib.suppress(OSError):  # a worker that is gone shows when its answer is read
            self.connection.send(request)

    def answer(self) -> Answer:
        """Wait for the answer to the last request."""
        late = f"no answer in {self.simulator.timeout_s:g} s"
        left = self.seconds_left
        if not self.connection.poll(max(0.0, left)):
            self.kill()
            return Failed(late)
        # A worker may stop in the middle of an answer, and reading would wait for the rest.
        watchdog = threading.Timer(max(1.0, left), self._end_processes)
        watchdog.start()
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):
            return Failed(f"the worker ended: {self._ending()}" if watchdog.is_alive() else late)
        finally:
            watchdog.cancel()
            self._deadline = None
        return answer

    def close(self) -> None:
        """Let the simulator close itself, and end the process."""
        self.ask(Close())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_S)
        self.kill()

    def kill(self) -> None:
        """End the process, and what it has started, at once; a second call does nothing."""
        if self._lifeline < 0:
            return  # its number may be that of another process by now
        self._end_processes()
        self._process.wait()
        self.connection.close()
        os.close(self._lifeline)
        self._lifeline, self._deadline = -1, None

    def _end_processes(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ending(self) -> str:
        try:
            code = self._process.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def opened(worker: WatchedWorker) -> Opened:
    """The answer to the first request.

    Raises:
        VlatrackError: a mistake of the user, or the simulator does not start.
    """
    answer = worker.answer()
    if isinstance(answer, Opened):
        return answer
    raise_refused(answer)
    assert isinstance(answer, Failed)
    raise SimulatorError(f"{worker.simulator.name}: does not start ({answer.text}); does its class work by itself?")


def checked(worker: WatchedWorker) -> tuple[str, ...]:
    """What the simulator finds wrong with itself.

    Raises:
        VlatrackError: a mistake of the user, or the simulator cannot look.
    """
    worker.ask(Check())
    answer = worker.answer()
    if isinstance(answer, Checked):
        return answer.found
    raise_refused(answer)
    assert isinstance(answer, Failed), answer
    raise SimulatorError(f"{worker.simulator.name}: cannot check itself ({answer.text}); is it installed as a whole?")


def raise_refused(answer: Answer) -> None:
    """Raise the mistake of the user that a worker has found, if it is one."""
    if isinstance(answer, Refused):
        kind = getattr(errors, answer.kind, DataError)
        raise (kind if issubclass(kind, VlatrackError) else DataError)(answer.text)


def wait_for_answers(workers: Sequence[WatchedWorker]) -> list[WatchedWorker]:
    """Wait until one or more of the workers that were asked have answered, ended, or are too late."""
    asked = {worker.connection: worker for worker in workers if worker.is_asked}
    ready = wait(list(asked), timeout=max(0.0, min(worker.seconds_left for worker in asked.values())))
    answered = [asked[connection] for connection in ready if isinstance(connection, Connection)]
    return answered or [worker for worker in asked.values() if worker.seconds_left <= 0]


def _started(theirs: Connection, read_end: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """A worker with the import path of this process, in a process group of its own: Ctrl-C is for its parent alone."""
    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "vlatrack.envs.worker", str(theirs.fileno()), str(read_end)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[theirs.fileno(), read_end],
        process_group=0,
    )


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as an exception, so that workers are ended, and what is half-written goes."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only that may change handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

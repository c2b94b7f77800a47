"""The delivery process of a run as the training process sees it: started, watched, and waited for at the end."""

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import vlatrack
from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.custom import delivery_environment
from vlatrack.tracking.delivery.health_watch import Told
from vlatrack.tracking.delivery.worker import COMPLETE, NONE_REACHABLE
from vlatrack.tracking.lock import Holder, copied_from, lock_holder, process_here
from vlatrack.tracking.privacy import open_private
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import OWN_RUN, Trust

GRACE_S = 5.0
"""How long a process that was told to end may take."""
WATCH_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0

_PACKAGE_FOLDER = str(Path(vlatrack.__file__).absolute().parents[1])
_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); import vlatrack; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Runs this very vlatrack, wherever it lies, and looks for nothing else beside it; `python -m` would look for the
libraries of the trackers in the current folder first."""
_log = logging.getLogger(__name__)


class DeliveryProcess:
    """Delivers while training goes on. If it dies, a new one takes over; the cursors say where it goes on.

    `files` tells where the run is now: a process ends when the folder is moved, and the next one finds it.
    """

    def __init__(
        self,
        files: Callable[[], RunFiles],
        *,
        serves_custom: bool,
        trust: Trust = OWN_RUN,
        on_health: Callable[[Told], None] | None = None,
    ) -> None:
        """`on_health` is called from a thread with what the detectors tell; None: the run is not watched."""
        self._files = files
        self._on_health = on_health
        self._serves_custom = serves_custom
        self._trust = trust
        self._process: subprocess.Popen[bytes] | None = None
        self._finishing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="delivery-watch", daemon=True)

    def start(self) -> None:
        """Start the process, and a thread that replaces it when it dies."""
        self._spawn()
        self._watcher.start()

    def await_end(self, timeout_s: float) -> None:
        """Return when everything is delivered, or after about `timeout_s` seconds: then the process is stopped.

        If it dies before that, another goes on.
        """
        give_up = time.monotonic() + timeout_s
        self._stop_watching()
        while not self._is_over(give_up) and self._files().delivery.exists():
            time.sleep(FIRST_PAUSE_S)
            self._spawn()

    def leave(self) -> None:
        """Let the process deliver the rest alone, and return at once."""
        self._stop_watching()
        if self._process is not None:  # somebody has to take its exit code, or it stays a zombie
            threading.Thread(target=self._process.wait, name="delivery-left", daemon=True).start()

    def _stop_watching(self) -> None:
        self._finishing.set()
        if self._watcher.is_alive():  # Ctrl-C may have come before it was started
            self._watcher.join()

    def _is_over(self, give_up: float) -> bool:
        if self._process is None:
            return time.monotonic() >= give_up
        try:
            code = self._process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop_worker(self._process)
            return True
        return code in (COMPLETE, NONE_REACHABLE) or time.monotonic() >= give_up

    def _watch(self) -> None:
        pause, begun = FIRST_PAUSE_S, time.monotonic()
        while not self._finishing.wait(WATCH_S):
            if self._process is not None and self._process.poll() is None:
                continue
            if time.monotonic() - begun > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            if self._finishing.wait(pause):
                return
            _log.warning("%s: its delivery process is gone; another takes over", self._files().run_dir)
            pause, begun = min(2 * pause, LONGEST_PAUSE_S), time.monotonic()
            self._spawn()

    def _spawn(self) -> None:
        try:
            self._process = self._started()
        except OSError as error:  # no memory, no file handle: training is not to end for that
            self._process = None
            _log.warning("%s: its delivery process cannot be started now (%s)", self._files().run_dir, error)

    def _started(self) -> "subprocess.Popen[bytes]":
        start = functools.partial(start_worker, self._files(), serves_custom=self._serves_custom, trust=self._trust)
        if self._on_health is None:
            return start()
        told, tell = os.pipe()
        try:
            process = start("--health", str(tell), inherits=tell)
            threading.Thread(target=self._listen, args=(told,), name="health", daemon=True).start()
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tell)
        return process

    def _listen(self, told: int) -> None:
        """Wait for lines until the process has ended; the training does not notice."""
        assert self._on_health is not None, "nobody else starts this thread"
        with os.fdopen(told, encoding="utf-8") as lines:
            for line in lines:
                try:
                    self._on_health(Told.of(line))
                except (ValueError, KeyError, TypeError) as error:
                    _log.warning("%s: a finding came damaged (%s)", self._files().run_dir, error)


def start_worker(
    files: RunFiles, *arguments: str, serves_custom: bool, trust: Trust, inherits: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start a delivery process of this run, in a session of its own: Ctrl-C in the terminal does not reach it."""
    believed = [f"--trust-{field}" for field, is_believed in dataclasses.asdict(trust).items() if is_believed]
    log = open_private(files.delivery_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        return subprocess.Popen(
            [*python_module("vlatrack.tracking.delivery.worker"), str(files.run_dir), *believed, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=delivery_environment(serves_custom=serves_custom and trust.backends),
            start_new_session=True,
            pass_fds=() if inherits is None else (inherits,),
        )
    finally:
        os.close(log)


def python_module(name: str) -> list[str]:
    """The beginning of a command that runs a module of this package."""
    return [sys.executable, "-c", _START, _PACKAGE_FOLDER, name]


def stop_worker(process: "subprocess.Popen[bytes]") -> None:
    """Stop a delivery process; its cursors say where the next one goes on."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _log.warning("the delivery process hangs in a tracker's client and is killed")
        process.kill()
        process.wait()


def end_delivery(files: RunFiles) -> None:
    """End the delivery process of an earlier part of this run; its cursors stay.

    Raises TrackerError if it does not end, or runs where it cannot be ended from here.
    """
    holder = _holder_after(files.delivery_lock, 0.2)
    if holder is None:
        return
    if not holder.host:  # it has no lease, so it is of an earlier vlatrack, which wrote its pid alone
        text = files.delivery_lock.read_text()
        holder = (process_here(int(text)) if text.isdigit() else None) or holder
    if not holder.is_here or copied_from(files.delivery_lock) is not None:
        raise TrackerError(f"{files.run_dir}: {holder} still delivers this run; wait for it or stop it there")
    for ending in (signal.SIGTERM, signal.SIGKILL):
        if holder.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.pid, ending)
        if _holder_after(files.delivery_lock, GRACE_S) is None:
            return
    raise TrackerError(f"{files.run_dir}: its delivery process does not end; stop it and try again")


def _holder_after(path: Path, timeout_s: float) -> Holder | None:
    """Who still holds the lock after so long; None as soon as nobody does."""
    give_up = time.monotonic() + timeout_s
    while (holder := lock_holder(path)) is not None and time.monotonic() < give_up:
        time.sleep(0.02)
    return holder

"""The delivery process of one run.

Usage: `python -m vlatrack.tracking.delivery.worker RUN_DIR [--patience S] [--only LABEL…] [--trust-backends]
[--trust-destination] [--health FD]`. It serves every backend from its own thread, closes the run as KILLED if the
trainer dies, and ends when everything of a run that is over is delivered, or when its time is over: after `--patience`
seconds without progress, or as `_Patience` says. With `--health FD` it runs the detectors as well, and tells its parent
through that open file what they find.
"""

import argparse
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig, Destination
from vlatrack.tracking.backends.destinations import target_of
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.configs import configs_of_run
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.delivery.health_watch import HealthWatch
from vlatrack.tracking.delivery.log import log_to_standard_error
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.delivery.uploads import Uploads
from vlatrack.tracking.delivery.webhook import Webhook, WebhookSender
from vlatrack.tracking.health import thresholds_of
from vlatrack.tracking.journal.journal import Journal, is_being_written
from vlatrack.tracking.journal.records import Kind, finish_record, last_record
from vlatrack.tracking.lock import FileLock, LockHeldError, copied_from
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.sharing import umask_for
from vlatrack.tracking.trust import NOTHING, Trust, untrusted
from vlatrack.tracking.user import provide_folders, provide_user

WATCH_S = 1.0
PATIENCE_WITHOUT_TRAINER_S = 600.0
"""How long delivery goes on when the training process is gone and nobody waits for it."""
FULL_DISK_PAUSE_S = 10.0
ENOUGH_FILES = 4096

_NICENESS = 10
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""A batch creates thousands of objects that need no collector; scanning the trackers' libraries each time took a tenth
of the delivery."""
_log = logging.getLogger(__name__)


COMPLETE, BUSY, LEFT, NONE_REACHABLE = 0, 3, 4, 5
"""Exit codes: every backend has everything; another process delivers this run; something is left; there is no backend
that this process may, or can, connect to."""


def main(
    run_dir: Path,
    *,
    patience_s: float | None = None,
    only: Collection[str] = (),
    trust: Trust = NOTHING,
    health: int | None = None,
) -> int:
    """Deliver to every backend, or to those in `only`; returns the exit code. `trust` is what of the folder is
    believed; `health` is the open file through which the parent is told of findings, None: nothing is watched."""
    files = RunFiles(run_dir)
    log_to_standard_error()
    try:
        lock = FileLock.acquire(files.delivery_lock)
    except LockHeldError as error:
        _log.warning("%s delivers this run", error.holder)
        return BUSY
    lock.write(str(os.getpid()))
    os.umask(umask_for(files.run_dir))
    _lower_priority()
    _raise_file_limit()
    provide_user()
    provide_folders(files.delivery)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    watching = _watching(files, health, stopping)
    code = _serve(files, lock, stopping, patience_s, only, trust, watching)
    lock.release()
    if code != LEFT:
        return code
    # A thread may hang in a tracker's client; the cursors on the disk say what is left.
    logging.shutdown()
    os._exit(LEFT)


def _serve(
    files: RunFiles,
    lock: FileLock,
    stopping: threading.Event,
    patience_s: float | None,
    only: Collection[str],
    trust: Trust,
    watching: Sequence[threading.Thread],
) -> int:
    if patience_s is not None and not is_being_written(files.journal):
        close_as_killed(files.journal)
    wanted = {label: config for label, config in configs_of_run(files.run_dir).items() if not only or label in only}
    found = [_tail_of(files, label, config, stopping, trust) for label, config in wanted.items()]
    tails = [tail for tail in found if tail is not None]
    if found and not tails and not watching:
        return NONE_REACHABLE
    threads = [threading.Thread(target=tail.run, name="delivery", daemon=True) for tail in tails]
    threads += watching
    for thread in threads:
        thread.start()
    patience = (
        _Patience(files.journal, tails) if patience_s is None else _PatienceWithProgress(files, tails, patience_s)
    )
    while any(thread.is_alive() for thread in threads) and not stopping.wait(WATCH_S):
        lock.beat()
        if not files.journal.exists():
            _log.warning("the run's folder is gone; if it was moved, it is delivered from there")
            return LEFT
        if patience.is_over():
            _log.warning("time is over")
            return LEFT
    if watching and not is_being_written(files.journal):
        close_as_killed(files.journal)
    if found and not tails:
        return NONE_REACHABLE
    is_complete = not stopping.is_set() and all(tail is not None and tail.finished for tail in found)
    return COMPLETE if is_complete else LEFT


def _watching(files: RunFiles, pipe: int | None, stopping: threading.Event) -> list[threading.Thread]:
    """The threads, not started yet, that watch the run's health and tell people of it."""
    if pipe is None:
        return []
    os.set_inheritable(pipe, False)  # the processes of the trackers are not to hold it open
    try:
        thresholds = thresholds_of(files)
        webhook = Webhook.of_environment()
    except TrackerError as error:
        _log.warning("%s", error)
        os.close(pipe)
        return []
    if thresholds is None:
        os.close(pipe)
        return []
    bodies = [HealthWatch(files, thresholds, stopping, pipe).run]
    if webhook is not None:
        bodies.append(WebhookSender(files, webhook, stopping).run)
    return [threading.Thread(target=body, name="health", daemon=True) for body in bodies]


def _tail_of(
    files: RunFiles, label: str, config: BackendConfig, stopping: threading.Event, trust: Trust
) -> Tail | None:
    """None for a backend that is not to be served; its cursor says why."""
    reach, where = partial(connect, config, files.run_dir), partial(_destination_of, config, files.runs)
    try:
        tail = Tail(files.run_dir, label, reach, stopping, destination=where)
        reason = None if tail.finished else untrusted(config, files.runs, trust=trust)
        if reason is None:
            return tail
    except Exception as error:  # its options, or the variables that count for it, mean nothing here
        reason = str(error) if isinstance(error, TrackerError) else one_line(error)
    file = CursorFile(files.delivery, label)
    file.write(replace(file.read(), error=reason))
    return None


def _destination_of(config: BackendConfig, runs: Path) -> Destination:
    return target_of(config, runs).destination


def _lower_priority() -> None:
    """Let training go first: a process of SCHED_BATCH never preempts another one that has just begun to compute."""
    os.nice(_NICENESS)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _raise_file_limit() -> None:
    """The clients of the trackers open dozens of files, also where the training is content with a limit of a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, ENOUGH_FILES)), hard))


class _PatienceWithProgress:
    """For a run that is over; lasts until no backend has got anything for so long, a part of a large file included."""

    def __init__(self, files: RunFiles, tails: Sequence[Tail], seconds: float) -> None:
        self._tails, self._seconds = tails, seconds
        self._uploads = Uploads(files)
        for tail in tails:
            tail.drain()
        self._seen: list[tuple[int, ...]] = []
        self._at = 0.0

    def is_over(self) -> bool:
        now = [tail.progress for tail in self._tails]
        if now != self._seen or self._uploads.have_moved():
            self._seen, self._at = now, time.monotonic()
        return time.monotonic() > self._at + self._seconds


class _Patience:
    """Lasts while the journal is being written, also after the run's end, and then until the trainer, which waits for
    as long as it was told, stops this process. Where the trainer is gone it lasts some minutes more, and at least as
    long as the finish record says.

    A trainer that died without a finish record is KILLED; on a full disk that is tried again.
    """

    def __init__(self, journal: Path, tails: Sequence[Tail]) -> None:
        self._journal, self._tails = journal, tails
        self._until: float | None = None
        self._try_at = 0.0

    def is_over(self) -> bool:
        now = time.time()
        if is_being_written(self._journal):
            self._until = now + PATIENCE_WITHOUT_TRAINER_S
            return False
        end = finish_record(self._journal)
        if end is not None:
            for tail in self._tails:
                tail.drain()
            return now > max(self._until or 0.0, end.data["deliver_until_ms"] / 1000)
        self._until = self._until or now + PATIENCE_WITHOUT_TRAINER_S
        if now >= self._try_at:
            self._try_at = now + FULL_DISK_PAUSE_S
            close_as_killed(self._journal)
        return now > self._until


def close_as_killed(path: Path) -> bool:
    """Write the end of a run whose process is gone without one; whether that was to be done, and could be."""
    last = last_record(path)
    if last is None or finish_record(path) is not None:
        return False
    if (original := copied_from(path)) is not None:
        _log.info("no end is written into a copy of a run that %s wrote", original)
        return False
    try:
        journal = Journal.open(path, run=last.run, writer="delivery")
    except TrackerError as error:
        _log.info("the run goes on: %s", error)
        return False
    except OSError as error:  # a full disk, above all; it is tried again
        _log.warning("the end of the run cannot be written (%s)", error)
        return False
    with contextlib.closing(journal):
        if finish_record(path) is not None:
            return False
        _log.warning("the training process is gone; the run is KILLED")
        until = int((time.time() + PATIENCE_WITHOUT_TRAINER_S) * 1000)
        reason = "the training process ended without saying why"
        end = {"status": "KILLED", "reason": reason, "deliver_until_ms": until}
        return journal.append(Kind.FINISH, end) is not None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="vlatrack.tracking.delivery.worker")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--patience", type=float)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--trust-backends", action="store_true")
    parser.add_argument("--trust-destination", action="store_true")
    parser.add_argument("--health", type=int, metavar="FD")
    given = parser.parse_args()
    trust = Trust(given.trust_backends, given.trust_destination)
    sys.exit(main(given.run_dir, patience_s=given.patience, only=given.only, trust=trust, health=given.health))

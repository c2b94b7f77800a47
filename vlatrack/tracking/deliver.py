"""The delivery process of one run: `python -m vlatrack.tracking.deliver RUN_DIR`.

It serves every backend from its own thread, closes the run as KILLED if the trainer dies, and ends when the finish
record is delivered or its time is over.
"""

import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal import Journal, Kind, is_being_written, last_record
from vlatrack.tracking.layout import RunFiles
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.registry import backend_label, backends_of, connect
from vlatrack.tracking.tail import Tail

WATCH_S = 0.25
PATIENCE_WITHOUT_TRAINER_S = 600.0
"""How long delivery goes on if the trainer died and nobody waits for the end."""

_NICENESS = 5
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""A batch makes thousands of objects that need no collector; looking through the trackers' libraries each time took a
tenth of the delivery."""
_log = logging.getLogger(__name__)


def main(run_dir: Path) -> int:
    """Deliver; exit code 0 if every backend has everything, 1 if something is left."""
    files = RunFiles(run_dir)
    _log_to_standard_error()
    lock = os.open(files.delivery_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("another process delivers this run")
        return 1
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    os.umask(0o077)
    os.nice(_NICENESS)  # training goes first
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    if _serve(files, stopping):
        return 0
    # A thread may hang in a tracker's client; the cursors on the disk say what is left.
    logging.shutdown()
    os._exit(1)


def _serve(files: RunFiles, stopping: threading.Event) -> bool:
    configs = backends_of(files.backends.read_text())
    tails, threads = [], []
    for index, config in enumerate(configs):
        label = backend_label(config, index)
        tail = Tail(files.run_dir, label, partial(connect, config, files.run_dir), stopping)
        tails.append(tail)
        threads.append(threading.Thread(target=tail.run, name=label, daemon=True))
    for thread in threads:
        thread.start()
    give_up_ms: float | None = None
    while any(thread.is_alive() for thread in threads) and not stopping.wait(WATCH_S):
        give_up_ms = give_up_ms or _end_of_patience(files.journal)
        if give_up_ms is not None and time.time() * 1000 > give_up_ms:
            _log.warning("time is over")
            return False
    return not stopping.is_set() and all(tail.finished for tail in tails)


def _end_of_patience(journal: Path) -> float | None:
    """When delivery gives up, in Unix milliseconds; None while the trainer lives."""
    last = last_record(journal)
    assert last is not None, "the journal begins before delivery does"
    if last.kind == Kind.FINISH:
        return float(last.data["deliver_until_ms"])
    if not is_being_written(journal):
        _close_as_killed(journal, last.run)
    return None


def _close_as_killed(path: Path, run: str) -> None:
    try:
        journal = Journal.open(path, run=run, writer="delivery")
    except TrackerError as error:
        _log.info("the run goes on: %s", error)
        return
    with contextlib.closing(journal):
        last = last_record(path)
        if last is not None and last.kind != Kind.FINISH:
            _log.warning("the training process is gone; the run is KILLED")
            until = int((time.time() + PATIENCE_WITHOUT_TRAINER_S) * 1000)
            reason = "the training process ended without saying why"
            journal.append(Kind.FINISH, {"status": "KILLED", "reason": reason, "deliver_until_ms": until})


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Giving a tracker again what it acknowledged and lost: exactly the values that are missing there, or the whole run.

Only runs that are over are repaired, under the lock of delivery, so that nobody else delivers meanwhile.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import (
    Audit,
    Backend,
    BackendConfig,
    ListsValues,
    RemoteDeletedError,
    RunFinish,
    StartsAnew,
    TakesValuesAgain,
)
from vlatrack.tracking.backends.custom import delivery_environment
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery.audit import BackendAudit, compared_values, configs_of
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile
from vlatrack.tracking.delivery.journal_values import records_with
from vlatrack.tracking.delivery.others import deliver_record
from vlatrack.tracking.delivery.supervisor import python_module
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.delivery.value_hashes import ValueHasher
from vlatrack.tracking.journal.history import first_start
from vlatrack.tracking.journal.records import Kind, Record, finish_record, last_record, read_records
from vlatrack.tracking.lock import FileLock
from vlatrack.tracking.privacy import open_private
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.sharing import umask_for
from vlatrack.tracking.trust import NOTHING, Trust

WAIT_S = 5.0
"""For a delivery process that is about to end."""


def repair_backend(run_dir: Path, audit: BackendAudit, *, patience_s: float, trust: Trust = NOTHING) -> str:
    """Repair one backend of a run that is over and has been delivered; returns a line that says what was done.

    `trust` is that of the audit: a backend that is not to be trusted was not asked, and is not repaired. A process of
    its own does it: a later delivery process ends clients of trackers that others have left.
    """
    if audit.state in ("deleted", "not asked"):
        return f"left as it is: {audit.cannot_tell or '; '.join(audit.differences)}"
    done = _in_a_process(RunFiles(run_dir), audit.label)
    if done is not None:
        return done
    (share,) = sync_run(run_dir, backend=audit.label, patience_s=patience_s, trust=trust).backends
    if share.undelivered:
        return f"delivered anew, but {share.undelivered} records are left: {share.error or 'no answer'}"
    return f"delivered anew, all {share.delivered:,} records"


def _in_a_process(files: RunFiles, label: str) -> str | None:
    log = open_private(files.delivery_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        done = subprocess.run(
            [*python_module("vlatrack.tracking.delivery.repair"), str(files.run_dir), label],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=delivery_environment(serves_custom=label.startswith("custom-")),
            check=False,
        )
    finally:
        os.close(log)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return f"not repaired; {files.delivery_log} says why"
    told: str | None = json.loads(lines[-1])
    return told


def repair_here(run_dir: Path, label: str) -> str | None:
    """Repair one backend in this process; returns what was done, or None if the whole run is to be delivered anew, for
    which nothing stands in the way any more."""
    ((_, config),) = configs_of(run_dir, [label])
    files = RunFiles(run_dir)
    try:
        with _nobody_else_delivers(files):
            done = _repair_in_place(files, label, config)
            if done is None:
                CursorFile(files.delivery, label).forget_dead_letters()
                CursorFile(files.delivery, label).write(Cursor())
            return done
    except (RemoteDeletedError, TrackerError) as reason:
        return f"left as it is: {reason}"
    except Exception as error:  # the clients of the trackers raise whatever they like
        return f"not repaired ({one_line(error)})"


@contextlib.contextmanager
def _nobody_else_delivers(files: RunFiles) -> Iterator[None]:
    lock = FileLock.acquire(files.delivery_lock, timeout_s=WAIT_S)
    before = os.umask(umask_for(files.run_dir))
    try:
        yield
    finally:
        os.umask(before)
        lock.release()


def _repair_in_place(files: RunFiles, label: str, config: BackendConfig) -> str | None:
    start = first_start(files.journal)
    with contextlib.closing(connect(config, files.run_dir)) as backend:
        if backend.audit(start) == Audit():
            backend.open(start, -1)  # raises if a person has deleted it
            return None
        if isinstance(backend, StartsAnew) and isinstance(backend, ListsValues):
            with compared_values(files, backend, start) as (values, _, _):
                differs = values.missing or values.superfluous or values.doubled
            if differs:
                backend.start_anew()
                return None
        return _deliver_again(files, label, backend)


def _deliver_again(files: RunFiles, label: str, backend: Backend) -> str:
    end, last = finish_record(files.journal), last_record(files.journal)
    if end is None or last is None:
        raise TrackerError(f"{files.run_dir}: still running; only a run that is over can be repaired")
    file = CursorFile(files.delivery, label)
    file.write(replace(file.read(), end_is_due=True))  # of a repair that is cut, the next sync tells the end
    backend.open(first_start(files.journal), last.seq)
    told = _deliver_missing_values(files, backend, next_seq=last.seq + 1)
    left = [why for record in read_records(files.journal) if (why := _tell_again(files, backend, record))]
    backend.finish(RunFinish.of(end))
    file.write(replace(file.read(), end_is_due=False))
    return f"{told}; {len(left)} other records not, such as {left[0]}" if left else told


def _deliver_missing_values(files: RunFiles, backend: Backend, *, next_seq: int) -> str:
    if not isinstance(backend, ListsValues):
        return "this tracker does not list its values, which cannot be repaired one by one"
    start, key_of = first_start(files.journal), cache(backend.metric_key)
    with compared_values(files, backend, start) as (values, _, missing):
        if not values.missing:
            return "no value is missing; params, tags, files and the end told again"
        if not isinstance(backend, TakesValuesAgain):
            return f"{values.missing:,} values are missing, which this tracker does not take again"
        lacking = partial(records_with, missing.read(), files.journal, key_of, ValueHasher(backend.numbers))
        refused = backend.deliver_again(lacking(), at_most=sum(1 for _ in lacking()), next_seq=next_seq)
    told = f"{values.missing - len(refused):,} values delivered again"
    return f"{told}; {len(refused):,} refused: {refused[0].reason}" if refused else told


def _tell_again(files: RunFiles, backend: Backend, record: Record) -> str | None:
    """Deliver a record that is none of metrics, without an alert, which people have had; returns why that failed."""
    if record.kind not in (Kind.START, Kind.ARTIFACT, Kind.EVENT):
        return None
    try:
        refused = deliver_record(backend, files.run_dir, record, alerts=False)
    except Exception as error:  # whatever an artifact store raises, the rest and the end are told
        return f"{record.kind} {record.data.get('name', '')}: {one_line(error)}"
    return "; ".join(f"{part.what}: {part.reason}" for part in refused)


if __name__ == "__main__":
    print(json.dumps(repair_here(Path(sys.argv[1]), sys.argv[2])))

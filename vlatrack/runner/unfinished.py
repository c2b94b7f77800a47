"""The run that a job goes on with when it is started again, claimed for this process: the last unfinished one of the
same experiment (`--resume auto`), or the one that the job itself began (`--job NAME`)."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import VlatrackError
from vlatrack.runner.directory import RunDirectory
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import canonical_hash
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.lock import FileLock, LockHeldError, settled_holder

LOCK_WAIT_S = 120.0
"""So long a resume waits for the end of a process that still writes the run: one whose parent or machine is gone."""
_POLL_S = 0.2
_OF_ITS_START = ("name", "init_from")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClaimedRun:
    """An unfinished run with a checkpoint, which no other process takes before `release`."""

    directory: RunDirectory
    checkpoint: Path  # its last one
    lock: FileLock

    def release(self) -> None:
        self.lock.release()


def claim_unfinished(runs: Path, spec: ExperimentSpec) -> ClaimedRun | None:
    """The run below ``runs`` that was started last, of those with the canonical hash of ``spec`` that are not finished
    and have a checkpoint; None if there is none. A run whose process lives, or that another process has claimed, is not
    taken; where that process was on another host or in another container, it takes up to a minute to see it.

    Whether the data is what it was is not looked at: the resume does, and says what has changed.
    """
    for directory in _same_experiment(runs, spec):
        claim = directory.path / "resume.lock"
        if _is_finished(directory) or any(settled_holder(file) is not None for file in (directory.journal, claim)):
            continue
        try:
            lock = FileLock.acquire(claim)
        except LockHeldError:
            continue
        if is_being_written(directory.journal) or _is_finished(directory):
            lock.release()
            continue
        if (claimed := _with_checkpoint(directory, lock)) is not None:
            return claimed
    return None


def has_checkpoint(directory: RunDirectory) -> bool:
    """Whether the run has a checkpoint to go on from, once nobody writes it any more, for which this waits a while."""
    give_up = time.monotonic() + LOCK_WAIT_S
    while directory.journal.exists() and is_being_written(directory.journal) and time.monotonic() < give_up:
        time.sleep(_POLL_S)
    if not directory.spec_file.is_file() or not directory.journal.exists():
        return False
    directory.checkpoints.recover()
    return bool(directory.checkpoints.all())


def claim_of_job(runs: Path, spec: ExperimentSpec, job: str) -> ClaimedRun | None:
    """The last run of the experiment's name below ``runs`` that the job began and that has a checkpoint, also if it is
    finished or its settings are no more those of ``spec``; None if there is none.

    Raises:
        LockHeldError: a living process writes it, or another one has claimed it: the job has been started twice.
    """
    for directory in _begun_by(runs / spec.name, job):
        claim = directory.path / "resume.lock"
        for file in (directory.journal, claim):
            if (holder := settled_holder(file)) is not None:
                raise LockHeldError(file, holder)
        lock = FileLock.acquire(claim)
        if (claimed := _with_checkpoint(directory, lock)) is not None:
            return claimed
    return None


def _with_checkpoint(directory: RunDirectory, lock: FileLock) -> ClaimedRun | None:
    """The run at its last checkpoint; None, and no longer locked, if it has none."""
    directory.checkpoints.recover()
    if present := directory.checkpoints.all():
        return ClaimedRun(directory, present[-1], lock)
    lock.release()
    return None


def _begun_by(experiment: Path, job: str) -> Iterator[RunDirectory]:
    """The runs below this folder that the job began, the last one first."""
    for path in sorted(experiment.glob("[0-9]*/spec.yaml"), reverse=True):
        directory = RunDirectory(path.parent)
        try:
            manifest = json.loads(directory.manifest_file.read_bytes())
        except FileNotFoundError:  # killed while it began
            continue
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("%s: left out by --job (%s)", directory.manifest_file, error)
            continue
        if isinstance(manifest, dict) and manifest.get("job") == job and directory.journal.exists():
            yield directory


def _is_finished(directory: RunDirectory) -> bool:
    return run_status(directory.path).status == "FINISHED"


def _same_experiment(runs: Path, spec: ExperimentSpec) -> Iterator[RunDirectory]:
    """The runs of the same experiment that have begun, the last one first."""
    wanted = canonical_hash(spec)
    for path in sorted((runs / spec.name).glob("[0-9]*/spec.yaml"), reverse=True):
        directory = RunDirectory(path.parent)
        try:
            found = directory.spec()
        except VlatrackError as error:
            _log.warning("%s: left out by --resume auto (%s)", directory.path, error)
            continue
        is_same = canonical_hash(found) == wanted and all(
            getattr(found, name) == getattr(spec, name) for name in _OF_ITS_START
        )
        if is_same and directory.journal.exists():
            yield directory

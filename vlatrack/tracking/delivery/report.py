"""What became of the records of a run, or of all runs, at each backend: read from cursors and the ends of journals."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.destinations import Target, target_of
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.configs import configs_of_run
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.history import RunStatus, run_status
from vlatrack.tracking.journal.records import JournalDamage, finish_record, last_record
from vlatrack.tracking.lock import Holder, copied_from, lease_holder, lock_holder
from vlatrack.tracking.run_files import RunFiles, resolved_path


@dataclass(frozen=True)
class BackendDelivery:
    """What became of one backend's share; counts are journal records, `url` says where a person finds the run."""

    label: str
    delivered: int
    undelivered: int
    dead_letters: int
    url: str | None
    error: str | None
    unset: str | None = None
    """Where the run was meant to go, and what to set, if the environment does not say it: nothing is delivered."""


@dataclass(frozen=True)
class DeliveryReport:
    """What became of a run's records; `lost` ones never reached the journal (a full disk)."""

    backends: tuple[BackendDelivery, ...]
    lost: int

    @property
    def complete(self) -> bool:
        return self.lost == 0 and all(b.undelivered == 0 and b.dead_letters == 0 for b in self.backends)


def labels_of(run_dir: Path) -> list[str]:
    """The backends that a run reports to, as `mlflow-0`; raises as `targets_of`."""
    return list(targets_of(run_dir))


def targets_of(run_dir: Path) -> dict[str, Target]:
    """Where each backend of a run delivers to here and now, by label; raises as `configs_of_run`."""
    runs = RunFiles(run_dir).runs
    return {label: target_of(config, runs) for label, config in configs_of_run(run_dir).items()}


def delivery_report(
    run_dir: Path,
    labels: Iterable[str],
    *,
    lost: int = 0,
    targets: Mapping[str, Target] = MappingProxyType({}),
    damage: JournalDamage | None = None,
) -> DeliveryReport:
    """How far each of these backends has got; `targets` say where they deliver to now."""
    files = RunFiles(run_dir)
    last = last_record(files.journal, damage=damage)
    total = 0 if last is None else last.seq + 1
    shares = []
    for label in labels:
        cursor = CursorFile(files.delivery, label).read()
        done = cursor.delivered_of(total)
        unset = targets[label].unset if label in targets and done < total else None
        reason = unset or cursor.reason
        shares.append(BackendDelivery(label, done, total - done, cursor.dead_letters, cursor.url, reason, unset=unset))
    return DeliveryReport(tuple(shares), lost)


def copy_without_end(journal: Path, *, damage: JournalDamage | None = None) -> str | None:
    """What to do with the run if it is a copy of one that had not ended then: its end is written by the original's
    process, or by `vlatrack sync` there. None for any other run."""
    original = copied_from(journal)
    if original is None or finish_record(journal, damage=damage) is not None:
        return None
    where = f"{Path(original.path).parent} on {original.host}"
    return f"a copy of {where}, of before its end; sync that one, or remove {journal.stem}.lease if it is lost"


@dataclass(frozen=True)
class RunOverview:
    """One run; `stale` means that its process is gone and nobody has written its end."""

    run_dir: Path
    status: RunStatus
    stale: bool
    backends: tuple[BackendDelivery, ...]
    writer: Holder | None = None
    """The process that writes it now or, of a stale run, was the last to do so, where that is known."""
    copy: str | None = None
    """What to do with it if it is a copy of a run that had not ended."""

    @property
    def is_over(self) -> bool:
        """Whether no process writes it any more."""
        return self.stale or self.writer is None

    @property
    def lacks_something(self) -> bool:
        """Whether its end is missing, or a backend has not got everything."""
        return self.stale or any(share.undelivered for share in self.backends)


@dataclass(frozen=True)
class Unreadable:
    """A run directory that cannot be read, and why."""

    run_dir: Path
    reason: str


def run_overviews(runs: Path) -> list[RunOverview | Unreadable]:
    """Every run `<runs>/<experiment>/<run-id>` by name; TrackerError if the folder is missing or cannot be read."""
    found = (entry if isinstance(entry, Unreadable) else overview_of(entry) for entry in run_directories(runs))
    return [entry for entry in found if entry is not None]


def run_directories(runs: Path) -> Iterator[Path | Unreadable]:
    """What stands where runs are, `<runs>/<experiment>/<run-id>`, by name, and the experiments that cannot be read.

    Raises TrackerError, at the first, if the folder is missing or cannot be read.
    """
    resolved_path(runs)
    if not runs.is_dir():
        what = "not a folder" if runs.exists() else "no such folder"
        raise TrackerError(f"{runs}: {what}; give the folder that holds the runs with --runs")
    if not os.access(runs, os.R_OK | os.X_OK):
        raise TrackerError(f"{runs}: cannot be read; give the folder that holds the runs with --runs")
    for experiment in sorted(path for path in runs.iterdir() if not path.name.startswith(".")):
        try:
            run_dirs = sorted(experiment.iterdir()) if _is_folder(experiment) else []
        except OSError as error:
            yield Unreadable(experiment, str(error.strerror))
            continue
        yield from run_dirs


def _is_folder(path: Path) -> bool:
    """Raises OSError where that cannot be told: for a loop of symbolic links, in a folder that may not be read."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:  # a symbolic link to what is no more
        return False


def overview_of(run_dir: Path, *, damage: JournalDamage | None = None) -> RunOverview | Unreadable | None:
    """None if there is no run; whatever is wrong with one must not keep the others from being shown."""
    try:
        if not _is_folder(run_dir) or not os.path.lexists(RunFiles(run_dir).journal):
            return None
        return _readable_overview(run_dir, damage)
    except (TrackerError, OSError) as error:
        return Unreadable(run_dir, str(error))
    except Exception as error:  # somebody has made these files, to whom no rule applies
        return Unreadable(run_dir, f"its files are damaged ({one_line(error)})")


def _readable_overview(run_dir: Path, damage: JournalDamage | None) -> RunOverview:
    journal = RunFiles(run_dir).journal
    writer, status = lock_holder(journal), run_status(run_dir, damage=damage)
    targets = targets_of(run_dir)
    shares = delivery_report(run_dir, targets, targets=targets, damage=damage).backends
    if (copy := copy_without_end(journal, damage=damage)) is not None:
        return RunOverview(run_dir, status, False, shares, writer, copy)
    has_no_end = last_record(journal, damage=damage) is not None and finish_record(journal, damage=damage) is None
    if writer is None and has_no_end:
        return RunOverview(run_dir, status, True, shares, lease_holder(journal))
    return RunOverview(run_dir, status, False, shares, writer)

"""Reads what a training of RynnVLA-002 or WorldVLA left behind, its log files and event files, as rows of values."""

import hashlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

from vlatrack.errors import DataError
from vlatrack.importers.tensorboard import EVENT_FILES, Row, read_scalars
from vlatrack.metrics.grouping import documented_name
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.reports.epoch_log import LOG_FILES, EpochLog, read_epoch_log

_SPLIT_OF_FILE = {file: split for split, (file, _) in LOG_FILES.items()}


@dataclass(frozen=True)
class Sources:
    """The files to import: the log file of each split that has one, and event files."""

    logs: Mapping[str, Path]
    events: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.logs.values(), *self.events)

    def digest(self) -> str:
        """SHA-256 (hex) of what the files hold, wherever they are; DataError if one cannot be read."""
        parts = [f"{split} {_sha256(path)}" for split, path in self.logs.items()]
        parts += [f"events {_sha256(path)}" for path in self.events]
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


@dataclass(frozen=True)
class Rows:
    """All values of a training, ascending in step, and what the user should know about how they were read."""

    rows: tuple[Row, ...]
    notices: tuple[str, ...]


def find_sources(paths: Sequence[Path]) -> Sources:
    """The log and event files among `paths`; of a folder, the logs in it and the event files anywhere below it.

    Raises:
        DataError: a path cannot be read or is of neither kind, two are logs of the same split, or there is nothing.
    """
    logs: dict[str, Path] = {}
    events: set[Path] = set()
    for path in paths:
        for file in _files_at(path):
            if fnmatch(file.name, EVENT_FILES):
                events.add(file)
            elif file.name not in _SPLIT_OF_FILE:
                known = ", ".join([*_SPLIT_OF_FILE, EVENT_FILES])
                raise DataError(f"{file}: neither a log file nor an event file by its name; they are called {known}")
            elif logs.setdefault(_SPLIT_OF_FILE[file.name], file) != file:
                raise DataError(f"{file}: a second {file.name}, beside {logs[_SPLIT_OF_FILE[file.name]]}; give one run")
    if not logs and not events:
        raise DataError(
            f"{', '.join(map(str, paths))}: holds none of {', '.join(_SPLIT_OF_FILE)}, {EVENT_FILES}; "
            "give the output folder of a training"
        )
    return Sources({split: logs[split] for split in LOG_FILES if split in logs}, tuple(sorted(events)))


def read_rows(sources: Sources, *, steps_per_epoch: int | None = None) -> Rows:
    """Read everything; a name that the schema does not declare is kept, and reported in a notice.

    Without event files the step is the epoch, and the time that of the file's last change. Event files have steps and
    times of their own; an epoch is then placed at its last step, every `steps_per_epoch` (None: derived from their last
    step). A name that is in both has the event files' values, which are finer; the others come from the log file.

    Raises:
        DataError: with file and line for a line that is wrong, or if there is no value at all.
        MissingPackageError: there are event files, and no `tensorboard` package.
    """
    logs = [(read_epoch_log(split, path), path.stat().st_mtime_ns // 1_000_000) for split, path in sources.logs.items()]
    events = _with_names(read_scalars(sources.events)) if sources.events else []
    notices: list[str] = []
    if events and logs and steps_per_epoch is None:
        steps_per_epoch = _guess_steps_per_epoch(events, [log for log, _ in logs])
        notices.append(f"one epoch is {steps_per_epoch} steps, derived from the last step of the event files")
    finer = {name for row in events for name in row.values}
    rows = [*events, *(row for log, ms in logs for row in _log_rows(log, ms, finer, events, steps_per_epoch or 1))]
    if not any(row.values for row in rows):
        raise DataError(f"{sources.files[0]}: no values to import; give the output folder of a training")
    in_logs = {f"{log.split}_{name}" for log, _ in logs for values in log.values for name in values}
    if both := sorted(finer & in_logs):
        notices.append(f"values of single steps from the event files, instead of means of epochs: {', '.join(both)}")
    names = finer | in_logs
    if unknown := sorted(name for name in names if name not in MetricSchema.covering(names)):
        notices.append(f"imported as they are, though not declared in the metric schema: {', '.join(unknown)}")
    return Rows(tuple(sorted(rows, key=lambda row: (row.step, row.t_ms))), tuple(notices))


def _files_at(path: Path) -> list[Path]:
    def fail(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); give another path") from error

    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        fail(error)
    if not is_folder:
        return [path]
    below = [Path(folder) / name for folder, _, names in os.walk(path, onerror=fail) for name in names]
    logs = [file for file in below if file.parent == path and file.name in _SPLIT_OF_FILE]
    return sorted(logs + [file for file in below if fnmatch(file.name, EVENT_FILES)])


def _with_names(rows: Sequence[Row]) -> list[Row]:
    """Rows of tags as rows of metrics."""
    tags = {tag for row in rows for tag in row.values}
    names = _names_of(tags, MetricSchema.covering(map(_spelled, tags)))
    return [Row(row.step, row.t_ms, {names[tag]: value for tag, value in row.values.items()}) for row in rows]


def _spelled(tag: str) -> str:
    """`train/closs` and `speed/train_mfu` without what groups them; a plain name without a split is the training's."""
    name = documented_name(tag)
    return name if name != tag or name.startswith(("train_", "val_")) else f"{TRAIN}_{name}"


def _names_of(tags: set[str], schema: MetricSchema) -> dict[str, str]:
    """For each tag the declared name that it stands for; the tag itself if there is none, or another tag has it."""
    names = {tag: tag for tag in tags if tag in schema}
    for tag in sorted(tags - names.keys()):
        free = _spelled(tag) in schema and _spelled(tag) not in names.values()
        names[tag] = _spelled(tag) if free else tag
    return names


def _guess_steps_per_epoch(events: Sequence[Row], logs: Sequence[EpochLog]) -> int:
    epochs = max((log.epochs[-1] for log in logs if log.epochs), default=0) + 1
    if epochs < 1:
        names = ", ".join(LOG_FILES[log.split][0] for log in logs)
        raise DataError(f"{names}: only epochs below 0, which do not tell how long one is; give --steps-per-epoch")
    return max(1, round((events[-1].step + 1) / epochs))


def _log_rows(
    log: EpochLog, modified_ms: int, finer: set[str], events: Sequence[Row], steps_per_epoch: int
) -> Iterable[Row]:
    times = {row.step: row.t_ms for row in events}
    steps = sorted(times)
    for epoch, values in zip(log.epochs, log.values, strict=True):
        step = (epoch + 1) * steps_per_epoch - 1
        named = {f"{log.split}_{name}": value for name, value in values.items()}
        kept = {name: value for name, value in named.items() if name not in finer}
        before = bisect_right(steps, step)
        yield Row(step, times[steps[before - 1]] if before else modified_ms, {**kept, "epoch": float(epoch + 1)})


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable or leave it out") from None

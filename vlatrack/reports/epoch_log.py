"""The documented log files of a run, with one JSON line per epoch.

As in the reference, a value that is not finite is written as NaN, Infinity or -Infinity, which Python's json module
reads but stricter parsers do not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack.errors import DataError
from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD
from vlatrack.reports.line_files import append_text, read_text, replace_text

LOG_FILES = {
    TRAIN: ("log_train.txt", "train_"),
    VAL_IND: ("log_eval_ind.txt", "val_"),
    VAL_OOD: ("log_eval_ood.txt", "val_"),
}
"""File and name prefix of each split; both evaluation files use plain ``val_``."""

_EPOCHS = 2**31
"""No training has as many, and their steps fit into 64 bits."""


@dataclass(frozen=True)
class EpochLog:
    """The log of one split: epochs, ascending, and the values of each by name without prefix (``closs``)."""

    split: str
    epochs: tuple[int, ...]
    values: tuple[dict[str, float], ...]


def read_epoch_logs(run_dir: Path) -> list[EpochLog]:
    """The logs in `run_dir`, in the order of `LOG_FILES`; if an epoch was logged twice, the later line counts.

    Raises:
        DataError: a file cannot be read, or a line is not a JSON object of numbers.
    """
    found = [(split, run_dir / file) for split, (file, _) in LOG_FILES.items()]
    return [read_epoch_log(split, path) for split, path in found if path.exists()]


def read_epoch_log(split: str, path: Path) -> EpochLog:
    """The log of one split from the file at `path`; if an epoch was logged twice, the later line counts.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object of numbers.
    """
    prefix = LOG_FILES[split][1]
    by_epoch: dict[int, dict[str, float]] = {}
    for number, line in enumerate(read_text(path).splitlines()):
        fields = _parse(line, place=f"{path}:{number + 1}")
        by_epoch[_epoch_of(fields, number)] = {
            name.removeprefix(prefix): value for name, value in fields.items() if name != "epoch"
        }
    epochs = tuple(sorted(by_epoch))
    return EpochLog(split, epochs, tuple(by_epoch[epoch] for epoch in epochs))


def append_epoch(file: Path, record: Mapping[str, float]) -> None:
    """Append the line of one epoch; `record` has names with their prefix, and `epoch`.

    Raises:
        DataError: the file cannot be written.
    """
    append_text(file, json.dumps(dict(record)) + "\n")


def drop_epochs_from(file: Path, epoch: int) -> None:
    """Remove the lines of `epoch` and later, which a resumed run writes again; nothing if there is no file.

    An incomplete last line, left by a killed run, is removed as well.

    Raises:
        DataError: the file cannot be read or written, or a line is not a JSON object of numbers.
    """
    if not file.exists():
        return
    whole = [line for line in read_text(file).splitlines(keepends=True) if line.endswith("\n")]
    numbered = [(_epoch_of(_parse(line, place=f"{file}:{i + 1}"), i), line) for i, line in enumerate(whole)]
    replace_text(file, "".join(line for number, line in numbered if number < epoch))


def _epoch_of(fields: dict[str, float], number: int) -> int:
    """The epoch of line `number`, both counted from 0; a line without `epoch` belongs to the epoch of its number."""
    return int(fields.get("epoch", number))


def _parse(line: str, *, place: str) -> dict[str, float]:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(value, int | float) for value in fields.values()):
        raise DataError(f"{place}: not a JSON object of numbers; remove the line")
    if not abs(fields.get("epoch", 0)) < _EPOCHS:  # also NaN
        raise DataError(f"{place}: epoch {str(fields['epoch'])[:12]} is not the number of an epoch; remove the line")
    if too_large := [name for name, value in fields.items() if isinstance(value, int) and value.bit_length() > 1023]:
        raise DataError(f"{place}: {too_large[0]} is larger than any float; remove the line")
    return fields

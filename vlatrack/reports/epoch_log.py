"""The documented log files of a run: one JSON line an epoch."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack.errors import DataError
from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD

LOG_FILES = {
    TRAIN: ("log_train.txt", "train_"),
    VAL_IND: ("log_eval_ind.txt", "val_"),
    VAL_OOD: ("log_eval_ood.txt", "val_"),
}
"""File and name prefix of each split; both evaluation files say plain ``val_``."""


@dataclass(frozen=True)
class EpochLog:
    """What one split logged: epochs ascending, and for each the values by name without prefix (``closs``)."""

    split: str
    epochs: tuple[int, ...]
    values: tuple[dict[str, float], ...]


def read_epoch_logs(run_dir: Path) -> list[EpochLog]:
    """Return the log of each split that `run_dir` has one of; of an epoch logged twice the later line counts.

    Raises:
        DataError: for a line that is not a JSON object of numbers.
    """
    found = [(split, run_dir / file) for split, (file, _) in LOG_FILES.items()]
    return [read_epoch_log(split, path) for split, path in found if path.exists()]


def read_epoch_log(split: str, path: Path) -> EpochLog:
    """Return the log of one split from the file at `path`; of an epoch logged twice the later line counts.

    Raises:
        DataError: for a file that cannot be read, or a line that is not a JSON object of numbers.
    """
    prefix = LOG_FILES[split][1]
    by_epoch: dict[int, dict[str, float]] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = _parse(line, place=f"{path}:{number}")
        epoch = int(fields.get("epoch", number - 1))
        by_epoch[epoch] = {name.removeprefix(prefix): value for name, value in fields.items() if name != "epoch"}
    epochs = tuple(sorted(by_epoch))
    return EpochLog(split, epochs, tuple(by_epoch[epoch] for epoch in epochs))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text") from error


def _parse(line: str, *, place: str) -> dict[str, float]:
    try:
        fields: Any = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(value, int | float) for value in fields.values()):
        raise DataError(f"{place}: not a JSON object of numbers; remove the line")
    if not math.isfinite(fields.get("epoch", 0)):
        raise DataError(f"{place}: epoch {fields['epoch']} is no number of an epoch; remove the line")
    return fields


def append_epoch(file: Path, record: dict[str, Any]) -> None:
    """Add one epoch's line to a log file."""
    with file.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def drop_epochs_from(file: Path, epoch: int) -> None:
    """Cut off the lines of ``epoch`` and later ones: a resumed run writes them again.

    A last line without its end was torn by the death of the run that wrote it; it goes too.
    """
    if not file.exists():
        return
    whole = (line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text("".join(line for line in whole if json.loads(line)["epoch"] < epoch))
    unfinished.replace(file)

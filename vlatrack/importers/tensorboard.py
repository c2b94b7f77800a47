"""Scalars of TensorBoard event files, read with the `tensorboard` package; torch is not needed."""

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlatrack.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

EVENT_FILES = "events.out.tfevents.*"
"""What the names of event files look like."""

_SCALARS = "scalars"
_LATEST_S = 1e11
"""Unix time in the year 5138; far later ones are no milliseconds that a tracker can store."""


@dataclass(frozen=True)
class Row:
    """Values of one step by their tag, or the name of their metric; `t_ms` is Unix time in milliseconds."""

    step: int
    t_ms: int
    values: dict[str, float]


def read_scalars(paths: Iterable[Path]) -> list[Row]:
    """The scalars of all event files, ascending in step, then in time; a torn end of a file is left out.

    A tag that was written twice at a step, as a resumed training does, is in two rows.

    Raises:
        DataError: a file cannot be read, or is no event file.
        MissingPackageError: the `tensorboard` package is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingPackageError(
            "reading TensorBoard event files needs a package: pip install 'vlatrack[tensorboard]'"
        )
    found = sorted((entry for path in paths for entry in _entries(path)), key=lambda entry: entry[:2])
    rows: list[Row] = []
    open_rows: dict[int, Row] = {}
    for t_ms, step, tag, value in found:
        row = open_rows.get(step)
        if row is None or tag in row.values:
            row = open_rows[step] = Row(step, t_ms, {})
            rows.append(row)
        row.values[tag] = value
    return sorted(rows, key=lambda row: (row.step, row.t_ms))


def _entries(path: Path) -> Iterator[tuple[int, int, str, float]]:
    """(Unix milliseconds, step, tag, value) of every scalar in one file, in the order of writing."""
    scalar_tags: set[str] = set()
    for event in _events(path):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == _SCALARS:
                scalar_tags.add(value.tag)  # told with the first value of a tag only
            number = _number(value, value.tag in scalar_tags)
            if number is not None:
                yield _milliseconds(event, path), event.step, value.tag, number


def _milliseconds(event: "Event", path: Path) -> int:
    if not abs(event.wall_time) < _LATEST_S:  # also NaN
        raise DataError(f"{path}: step {event.step} has the time {event.wall_time}; leave the file out")
    return round(event.wall_time * 1000)


def _events(path: Path) -> Iterator["Event"]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    try:
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable or leave it out") from None
    empty = True
    for event in EventFileLoader(str(path)).Load():
        empty = False
        yield event
    if empty and size > 0:
        raise DataError(f"{path}: not a TensorBoard event file, or damaged from its beginning; leave it out")


def _number(value: "Summary.Value", is_scalar: bool) -> float | None:
    from tensorboard.util import tensor_util

    if value.WhichOneof("value") == "simple_value":
        return float(value.simple_value)
    if not is_scalar or value.WhichOneof("value") != "tensor":
        return None
    numbers = tensor_util.make_ndarray(value.tensor)
    return float(numbers.item()) if numbers.size == 1 else None

"""When the steps of an episode are: by their timestamps, which videos have too, or one every 1/fps seconds."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot.rows import floats, integers
from vlatrack.errors import DataError

FRAME_INDEX, TIMESTAMP = "frame_index", "timestamp"
_NEAR = 0.25
"""Of the time between two steps: so far may timestamps, which are rounded, be from where they belong."""
_WRONG_FPS = 0.2
"""Share by which the usual time between two steps may differ from 1/fps, where that time varies."""


@dataclass(frozen=True)
class StepTimes:
    """The times of an episode's steps, rising; regular: one every 1/fps seconds, and `seconds` are exactly these."""

    seconds: NDArray[np.float64]
    are_regular: bool

    @classmethod
    def regular(cls, steps: int, fps: float) -> Self:
        """One every 1/fps seconds."""
        return cls(np.arange(steps) / fps, are_regular=True)

    @classmethod
    def of(cls, place: str, rows: pa.Table, fps: float) -> Self:
        """Those of the rows of an episode, whose frame indexes are checked as well.

        Args:
            place: the episode, for messages.
            rows: of the columns `FRAME_INDEX` and `TIMESTAMP` those that the dataset has.

        Raises:
            DataError: a step is missing or out of order, or the timestamps tell another `fps`.
        """
        if FRAME_INDEX in rows.column_names:
            _check_frame_index(place, integers(f"{place}: {FRAME_INDEX}", rows[FRAME_INDEX]))
        regular = cls.regular(rows.num_rows, fps)
        if TIMESTAMP not in rows.column_names:
            return regular
        told = floats(f"{place}: {TIMESTAMP}", rows[TIMESTAMP])
        if not np.isfinite(told).all():
            raise DataError(f"{place}: {TIMESTAMP} has values that are not finite; restore the file")
        if np.abs(told - regular.seconds).max(initial=0) <= _NEAR / fps:
            return regular
        steps = np.diff(told)
        if (steps <= 0).any():
            step = int((steps <= 0).argmax()) + 1
            raise DataError(f"{place}: the {TIMESTAMP} of step {step} is not after the one before; restore the file")
        usual = float(np.median(steps)) * fps if len(steps) else 1.0
        if abs(usual - 1) > _WRONG_FPS:
            raise DataError(
                f"{place}: steps are {usual / fps:.4g} s apart by their timestamps, but fps is {fps:g}; "
                f"correct fps in meta/info.json to {fps / usual:.4g}"
            )
        return cls(told, are_regular=False)


def _check_frame_index(place: str, frame_index: NDArray[np.int64]) -> None:
    gaps = np.flatnonzero(np.diff(frame_index) != 1)
    if len(gaps):
        step = int(gaps[0])
        raise DataError(
            f"{place}: {FRAME_INDEX} goes from {frame_index[step]} to {frame_index[step + 1]} at step {step + 1}, so "
            "steps are missing or out of order; leave this episode out"
        )

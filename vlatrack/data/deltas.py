"""Which steps' images a sample shows, where that is told in seconds before its step (delta timestamps).

Legend: E episodes, T steps of one, M moments of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.store.episode_table import EpisodeList, Ints
from vlatrack.data.wrapped import step_times
from vlatrack.errors import DataError

SETTING = "data.history_deltas"
_NEAR_S = 1e-4
"""So far may a delta be from a step of a regular rate: what rounding to 1/30 s as 0.0333 costs."""
_ROUNDING_S = 1e-9
_REGULAR = 0.25
"""Of the time between two steps: timestamps as near as this to a regular rate are one, written down with rounding."""


@dataclass(frozen=True)
class Deltas:
    """The moments whose images a policy sees, in seconds relative to its step."""

    seconds: tuple[float, ...]  # [M] rising, the last 0
    tolerance_s: float | None = None
    """By which a step may be off; None: 0.1 ms, or where the time between steps varies all of it (1/fps)."""

    def steps_back(self, fps: float, *, place: str) -> tuple[int, ...]:
        """[M] how many steps before the present one each moment is, at a rate.

        Args:
            place: what has this rate, for messages.

        Raises:
            DataError: there is no step at one of these moments; two of them are the same step.
        """
        found = [int(-delta * fps + 0.5) for delta in self.seconds]
        tolerance = _NEAR_S if self.tolerance_s is None else self.tolerance_s
        for delta, back in zip(self.seconds, found, strict=True):
            if abs(back + delta * fps) > tolerance * fps:
                later, earlier = int(-delta * fps), int(-delta * fps) + 1
                raise DataError(
                    f"{SETTING}: {place} has {fps:g} steps a second, and none {-delta:g} s before another; the nearest "
                    f"are at {_seconds(earlier, fps)} and {_seconds(later, fps)} (or set data.tolerance_s)"
                )
        for one, other in zip(range(len(found)), range(1, len(found)), strict=False):
            if found[one] == found[other]:
                both = f"{self.seconds[one]:g} and {self.seconds[other]:g} s"
                raise DataError(f"{SETTING}: {both} are the same step at the {fps:g} steps a second of {place}")
        return tuple(found)


class DeltaSteps:
    """How many steps before its own a sample's moments are, in each episode of a list.

    Memory holds some numbers an episode, and a few bytes a step of those whose steps are not one rate apart.
    """

    def __init__(self, regular: Ints, first: Ints, varying: NDArray[np.int32]) -> None:
        """
        Args:
            regular: [E, M] of episodes with a rate.
            first: [E] the row in ``varying`` of the others' step 0; -1: it has a rate.
            varying: [rows, M] of the steps of the others.
        """
        self._regular, self._first, self._varying = regular, first, varying

    def back(self, episodes: Ints, steps: Ints) -> Ints:
        """[n, M] how many steps before ``steps`` [n] of ``episodes`` [n]; before an episode's start: more than there
        are."""
        found = self._regular[episodes]
        first = self._first[episodes]
        own = first >= 0
        if own.any():
            found[own] = self._varying[first[own] + steps[own]]
        return found

    @classmethod
    def of(cls, source: EpisodeSource, episodes: EpisodeList, deltas: Deltas) -> Self:
        """Those of episodes of a dataset: by its rate, or by its timestamps in episodes in which they are not regular.

        Raises:
            DataError: at some step there is no other at one of these moments.
        """
        regular = np.tile(np.asarray(deltas.steps_back(source.fps, place=source.name), np.int64), (len(episodes), 1))
        first, rows, count = np.full(len(episodes), -1, np.int64), list[NDArray[np.int32]](), 0
        number_of = {index: number for number, index in enumerate(episodes.indices.tolist())}
        for index, seconds in step_times(source):
            if index not in number_of or _is_regular(seconds, source.fps):
                continue
            number, place = number_of[index], f"{source.name}: episode {index}"
            if len(seconds) != episodes.lengths[number]:
                raise DataError(f"{place} has {episodes.lengths[number]} steps but {len(seconds)} timestamps")
            rows.append(_steps_back_by_times(seconds, deltas, fps=source.fps, place=place))
            first[number], count = count, count + len(seconds)
        empty = np.empty((0, len(deltas.seconds)), np.int32)
        return cls(regular, first, np.concatenate([empty, *rows]))

    @classmethod
    def joined(cls, parts: Sequence["DeltaSteps"]) -> "DeltaSteps":
        """Those of several datasets' episodes, one after another."""
        starts = np.cumsum([0, *(len(part._varying) for part in parts)])
        of_parts = zip(parts, starts, strict=False)
        firsts = [np.where(part._first < 0, -1, part._first + start) for part, start in of_parts]
        return cls(
            np.concatenate([part._regular for part in parts]),
            np.concatenate(firsts),
            np.concatenate([part._varying for part in parts]),
        )


def _is_regular(seconds: NDArray[np.float64], fps: float) -> bool:
    expected = seconds[:1] + np.arange(len(seconds)) / fps
    return bool((np.abs(seconds - expected) <= _REGULAR / fps).all())


def _steps_back_by_times(seconds: NDArray[np.float64], deltas: Deltas, *, fps: float, place: str) -> NDArray[np.int32]:
    """[T, M] to the step that is nearest to each moment; one more than there are, where it is before the first."""
    if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        raise DataError(f"{place}: its timestamps do not grow from step to step; leave this episode out")
    tolerance = (1 / fps if deltas.tolerance_s is None else deltas.tolerance_s) + _ROUNDING_S
    wanted = seconds[:, None] + np.asarray(deltas.seconds)
    after = np.searchsorted(seconds, wanted).clip(max=len(seconds) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(seconds[after] - wanted < wanted - seconds[before], after, before)
    off = np.abs(seconds[nearest] - wanted)
    is_before_start = wanted < seconds[0] - min(tolerance, 0.5 / fps)
    missing = (off > tolerance) & ~is_before_start
    if missing.any():
        step, moment = (int(number) for number in np.argwhere(missing)[0])
        raise DataError(
            f"{SETTING}: {place}: no step within {tolerance:.4g} s of {-deltas.seconds[moment]:g} s before step {step}"
            f"; of {missing.sum()} such moments, the nearest steps are up to {off[missing].max():.4g} s off: set "
            "data.tolerance_s, or leave this episode out"
        )
    back = np.arange(len(seconds))[:, None] - nearest
    back[is_before_start] = np.broadcast_to(np.arange(1, len(seconds) + 1)[:, None], back.shape)[is_before_start]
    return back.astype(np.int32)


def _seconds(steps: int, fps: float) -> str:
    return f"{-steps / fps:.6g}" if steps else "0"

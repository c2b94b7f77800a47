"""A series of any length as few points: of each stretch of it the smallest and the largest value.

Legend: N points; a point is three float64 numbers: training step, Unix time in milliseconds, value.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""[N, 3] step, time and value of each point, as they were logged."""

STEP, TIME, VALUE = 0, 1, 2
STRETCHES = 2048
"""A series is kept in at most so many stretches, each of the same number of values; half as many after they fill up."""
NAMED_NON_FINITE = 256
"""So many of the points that are not finite are kept; of more, the last one and the number."""

_NO_POINTS: Points = np.empty((0, 3))


class DecimatedSeries:
    """The finite values of one metric, as few points; whatever its length, its extremes are exact.

    While a series is short, each of its values is kept.
    """

    def __init__(self) -> None:
        self._per_stretch = 1
        self._pairs = np.empty((0, 2, 3))  # of each stretch its smallest and its largest value, the earlier one first
        self._tail = _NO_POINTS  # of the stretch that is not complete
        self._last: Points = _NO_POINTS
        self.first: tuple[float, float, float] | None = None
        """The first point of all; None if there is none that is finite."""
        self.non_finite: list[tuple[float, float, float]] = []
        """The first points that are not finite, `NAMED_NON_FINITE` at most; of more, the last one stands at the end."""
        self.non_finite_count = 0

    def __len__(self) -> int:
        """How many finite values are kept or stand behind those that are."""
        return len(self._pairs) * self._per_stretch + len(self._tail)

    def extend(self, points: Points) -> None:
        """Add points, in the order in which they were logged; of several at one step, the last one counts."""
        if len(points) > 1:
            points = points[np.append(points[1:, STEP] != points[:-1, STEP], True)]
        finite = np.isfinite(points[:, VALUE])
        if not finite.all():
            left_out = points[~finite]
            room = NAMED_NON_FINITE - len(self.non_finite)
            self.non_finite += [_as_tuple(point) for point in left_out[:room]]
            self.non_finite[-1] = _as_tuple(left_out[-1])
            self.non_finite_count += len(left_out)
            points = points[finite]
        if not len(points):
            return
        self._replace_same_step(points[0, STEP])
        if self.first is None:
            self.first = _as_tuple(points[0])
        self._last = points[-1:].copy()
        self._tail = np.concatenate([self._tail, points])
        while len(self._tail) >= self._per_stretch:
            self._close_stretches()

    def _replace_same_step(self, step: float) -> None:
        if not len(self._last) or self._last[0, STEP] != step:
            return
        if len(self._tail):
            self._tail = self._tail[:-1]
        elif self._per_stretch == 1:
            self._pairs = self._pairs[:-1]
        if self.first is not None and self.first[STEP] == step:
            self.first = None

    def _close_stretches(self) -> None:
        size = self._per_stretch
        count = min(STRETCHES - len(self._pairs), len(self._tail) // size)
        self._pairs = np.concatenate([self._pairs, _extremes(self._tail[: count * size].reshape(count, size, 3))])
        self._tail = self._tail[count * size :]
        if len(self._pairs) == STRETCHES:
            self._pairs = _extremes(self._pairs.reshape(STRETCHES // 2, 4, 3))
            self._per_stretch *= 2

    def drop_from(self, step: int) -> None:
        """Leave out the points of this step and later: the run goes back over them."""
        before = self._pairs[..., STEP] < step
        # Of a stretch of which one extreme is left out, the other one stands for both.
        self._pairs = np.where(before[..., None], self._pairs, self._pairs[:, ::-1])[before.any(axis=1)]
        self._tail = self._tail[self._tail[:, STEP] < step]
        if self.first is not None and self.first[STEP] >= step:
            self.first = None
        if len(self.non_finite) == self.non_finite_count:  # else nobody knows how many of them are left
            self.non_finite_count = sum(point[STEP] < step for point in self.non_finite)
        self.non_finite = [point for point in self.non_finite if point[STEP] < step]
        kept = self._kept()
        self._last = kept[-1:].copy()

    @property
    def last(self) -> tuple[float, float, float] | None:
        """The last finite point; None if there is none."""
        return _as_tuple(self._last[0]) if len(self._last) else None

    @property
    def settled_step(self) -> float:
        """The step up to which `points` will be the same when more has been added, until stretches are joined;
        infinity while every value is kept."""
        if self._per_stretch == 1:
            return np.inf
        return float(self._pairs[-1, 1, STEP]) if len(self._pairs) else -np.inf

    def points(self) -> Points:
        """What is kept, ascending in step: all points of a short series, else the extremes of each stretch, and the
        first and the last point."""
        first = [] if self.first is None else [[self.first]]
        kept = _distinct(np.concatenate([*first, self._kept(), self._last]))
        if (np.diff(kept[:, STEP]) < 0).any():  # an earlier checkpoint was evaluated later
            kept = kept[np.argsort(kept[:, STEP], kind="stable")]
        return kept

    def points_between(self, low: float, high: float) -> Points:
        """Those of `points` from step `low` to step `high`, both included."""
        points = self.points()
        return points[(points[:, STEP] >= low) & (points[:, STEP] <= high)]

    def _kept(self) -> Points:
        tail = self._tail if len(self._tail) < 3 else _extremes(self._tail[None]).reshape(-1, 3)
        return _distinct(np.concatenate([self._pairs.reshape(-1, 3), tail]))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Its whole state, for a file."""
        return {
            "pairs": self._pairs,
            "tail": self._tail,
            "last": self._last,
            "first": np.array([self.first]) if self.first is not None else _NO_POINTS,
            "non_finite": np.array(self.non_finite) if self.non_finite else _NO_POINTS,
            "counts": np.array([self._per_stretch, self.non_finite_count], dtype=np.float64),
        }

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.float64]]) -> Self:
        """The inverse of `arrays`; ValueError or KeyError for anything else."""
        series = cls()
        shapes = {"pairs": (2, 3), "tail": (3,), "last": (3,), "first": (3,), "non_finite": (3,)}
        for name, shape in shapes.items():
            if arrays[name].dtype != np.float64 or arrays[name].shape[1:] != shape:
                raise ValueError(f"{name} is not of its shape")
        per_stretch, non_finite = (int(count) for count in arrays["counts"])
        if len(arrays["pairs"]) >= STRETCHES or per_stretch < 1 or len(arrays["tail"]) >= per_stretch:
            raise ValueError("no such series can be")
        series._per_stretch, series.non_finite_count = per_stretch, non_finite
        series._pairs, series._tail, series._last = arrays["pairs"], arrays["tail"], arrays["last"]
        series.first = _as_tuple(arrays["first"][0]) if len(arrays["first"]) else None
        series.non_finite = [_as_tuple(point) for point in arrays["non_finite"]]
        return series


def thinned(points: Points, most: int) -> Points:
    """At most about `most` of these points, in which each stretch has its smallest and its largest value."""
    if len(points) <= most:
        return points
    size = -(-2 * len(points) // most)
    whole = len(points) // size * size
    pairs = _extremes(points[:whole].reshape(-1, size, 3)).reshape(-1, 3)
    rest = _extremes(points[None, whole:]).reshape(-1, 3) if whole < len(points) else _NO_POINTS
    return _distinct(np.concatenate([points[:1], pairs, rest, points[-1:]]))


def _extremes(stretches: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 2, 3] the points with the smallest and the largest value of each of N stretches, the earlier one first."""
    values = stretches[..., VALUE]
    places = np.sort(np.stack([values.argmin(axis=1), values.argmax(axis=1)], axis=1), axis=1)
    return np.take_along_axis(stretches, places[..., None], axis=1)


def _distinct(points: Points) -> Points:
    """The points without those that are the same as the one before."""
    if len(points) < 2:
        return points
    return points[np.append(True, (points[1:] != points[:-1]).any(axis=1))]


def _as_tuple(point: NDArray[np.float64]) -> tuple[float, float, float]:
    step, time, value = (float(number) for number in point)
    return step, time, value

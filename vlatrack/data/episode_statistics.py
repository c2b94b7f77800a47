"""Statistics of the actions and states of episodes, in one pass and in bounded memory.

Legend: T steps, D numbers of an action or a state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode
from vlatrack.data.value_counts import ValueCounts, interpolated, quantile_ranks
from vlatrack.errors import DataError

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_BUFFERED = 1 << 18
"""Rows that are sorted at a time."""


@dataclass(frozen=True)
class ValueStatistics:
    """Of one number of the actions or the states, over all steps."""

    counts: ValueCounts
    low: float  # the smallest; infinity where there is no finite value
    high: float
    mean: float
    squares: float  # sum of the squared differences from the mean
    not_finite: int = 0  # NaN and infinite values, which are in none of the others
    not_finite_in: int | None = None  # the first episode with one

    @property
    def count(self) -> int:
        """Number of finite values."""
        return self.counts.total

    @property
    def std(self) -> float:
        """Standard deviation; of all values, not an estimate from a sample."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def quantiles(self, wanted: Sequence[float] = QUANTILES) -> tuple[float, ...]:
        """Interpolated between neighbours, as NumPy's; relative error at most 2^(counts.dropped - 24)."""
        if not self.count:
            return (math.nan,) * len(wanted)
        ranks, fractions = quantile_ranks(self.count, wanted)
        return tuple(interpolated(self.counts.at(ranks), fractions).tolist())

    def __add__(self, other: Self) -> Self:
        if not (self.count and other.count):
            own = self if self.count else other
            low, high, mean, squares = own.low, own.high, own.mean, own.squares
        else:
            low, high = min(self.low, other.low), max(self.high, other.high)
            share, apart = other.count / (self.count + other.count), other.mean - self.mean
            mean = self.mean + apart * share
            squares = self.squares + other.squares + apart * apart * share * self.count
        return type(self)(
            self.counts + other.counts,
            low,
            high,
            mean,
            squares,
            self.not_finite + other.not_finite,
            _first(self.not_finite_in, other.not_finite_in),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives back the same statistics."""
        numbers = {name: getattr(self, name).hex() for name in ("low", "high", "mean", "squares")}
        bad = {"not_finite": self.not_finite, "not_finite_in": self.not_finite_in}
        return {"counts": self.counts.to_json(), **numbers, **bad}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; DataError for anything else."""
        try:
            low, high, mean, squares = (float.fromhex(stored[name]) for name in ("low", "high", "mean", "squares"))
            bad, first = int(stored["not_finite"]), stored["not_finite_in"]
            counts = ValueCounts.from_json(stored["counts"])
            return cls(counts, low, high, mean, squares, bad, None if first is None else int(first))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"statistics: damaged ({error}); remove the file") from None


@dataclass(frozen=True)
class EpisodeStatistics:
    """Of a set of episodes. Those of two sets add up to those of both."""

    actions: tuple[ValueStatistics, ...]
    states: tuple[ValueStatistics, ...]  # of the episodes that have a state
    episodes: int
    without_state: int | None  # the first episode that has none

    @classmethod
    def of(cls, episodes: Iterable[Episode]) -> Self:
        """In one pass; memory does not grow with the number of steps."""
        running = RunningStatistics()
        for episode in episodes:
            running.add(episode)
        return cls._of(running)

    @classmethod
    def _of(cls, running: "RunningStatistics") -> Self:
        return cls(running.actions.result(), running.states.result(), running.episodes, running.without_state)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            _added(self.actions, other.actions),
            _added(self.states, other.states),
            self.episodes + other.episodes,
            _first(self.without_state, other.without_state),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives back the same statistics."""
        values = {name: [value.to_json() for value in getattr(self, name)] for name in ("actions", "states")}
        return {**values, "episodes": self.episodes, "without_state": self.without_state}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; DataError for anything else."""
        try:
            actions, states = (tuple(map(ValueStatistics.from_json, stored[name])) for name in ("actions", "states"))
            first = stored["without_state"]
            return cls(actions, states, int(stored["episodes"]), None if first is None else int(first))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"statistics: damaged ({error}); remove the file") from None


class RunningStatistics:
    """Statistics of the episodes that are added one after another."""

    def __init__(self) -> None:
        self.actions, self.states = _RunningValues(), _RunningValues()
        self.episodes = 0
        self.without_state: int | None = None

    def add(self, episode: Episode) -> None:
        """AssertionError if its numbers of an action or a state are not as many as those of the others."""
        self.episodes += 1
        self.actions.add(episode.actions, episode.index)
        if episode.states is not None:
            self.states.add(episode.states, episode.index)
        else:
            self.without_state = _first(self.without_state, episode.index)

    def result(self) -> EpisodeStatistics:
        """Of those so far."""
        return EpisodeStatistics._of(self)


class _RunningValues:
    """Collects rows, and counts many at a time: each time, all different values are gone through."""

    def __init__(self) -> None:
        self._columns: NDArray[np.float32] | None = None  # one dimension after another in memory, as they are sorted
        self._filled = 0
        self._so_far: tuple[ValueStatistics, ...] = ()
        self._bad: dict[int, tuple[int, int]] = {}  # dimension → how many values, in which episode the first

    def add(self, values: NDArray[np.float32], episode: int) -> None:
        if self._columns is None:
            self._columns = np.empty((values.shape[1], _BUFFERED), np.float32)
        assert values.shape[1] == len(self._columns), (values.shape, self._columns.shape)
        finite = np.isfinite(values)
        if not finite.all():
            for dimension, number in enumerate((~finite).sum(axis=0).tolist()):
                if number:
                    before, first = self._bad.get(dimension, (0, episode))
                    self._bad[dimension] = before + number, min(first, episode)
        for start in range(0, len(values), _BUFFERED):
            self._put(values[start : start + _BUFFERED])

    def _put(self, values: NDArray[np.float32]) -> None:
        assert self._columns is not None, "add made it"
        room = _BUFFERED - self._filled
        self._columns[:, self._filled : self._filled + min(room, len(values))] = values[:room].T
        self._filled += min(room, len(values))
        if self._filled == _BUFFERED:
            self._count()
            self._columns[:, : max(0, len(values) - room)] = values[room:].T
            self._filled = max(0, len(values) - room)

    def _count(self) -> None:
        assert self._columns is not None, "there are rows"
        found = tuple(_described(column) for column in self._columns[:, : self._filled])
        self._so_far, self._filled = _added(self._so_far, found), 0

    def result(self) -> tuple[ValueStatistics, ...]:
        if self._filled:
            self._count()
        return tuple(
            ValueStatistics(of.counts, of.low, of.high, of.mean, of.squares, *self._bad.get(d, (0, None)))
            for d, of in enumerate(self._so_far)
        )


def _described(column: NDArray[np.float32]) -> ValueStatistics:
    finite = np.isfinite(column)
    values = column if finite.all() else column[finite]
    if not len(values):
        return ValueStatistics(ValueCounts.of(values), math.inf, -math.inf, 0.0, 0.0)
    exact = values.astype(np.float64)
    mean = float(exact.mean())
    return ValueStatistics(
        ValueCounts.of(values), float(values.min()), float(values.max()), mean, float(((exact - mean) ** 2).sum())
    )


def _added(one: tuple[ValueStatistics, ...], other: tuple[ValueStatistics, ...]) -> tuple[ValueStatistics, ...]:
    if not (one and other):
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _first(one: int | None, other: int | None) -> int | None:
    return min((index for index in (one, other) if index is not None), default=None)

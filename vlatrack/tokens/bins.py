"""Uniform bins: a number of an action or a state as one token id, and back."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import TokenError

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ValueRange:
    """Smallest and largest value of each dimension; they are mapped to -1 and 1."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high):
            raise TokenError(f"value range: {len(self.low)} low and {len(self.high)} high values")
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            # Equal is allowed: a dimension that never changes in the data maps to -1.
            if not low <= high:
                raise TokenError(f"value range: low[{i}] = {low:g} is above high[{i}] = {high:g}")

    @property
    def dimensions(self) -> int:
        return len(self.low)

    @cached_property
    def _low_and_span(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        return low, high - low + 1e-8

    def normalise(self, values: FloatArray) -> NDArray[np.float64]:
        """Raw values [..., A] to [-1, 1]; values outside the range are clipped."""
        low, span = self._low_and_span
        scaled = 2 * (np.asarray(values, np.float64) - low) / span - 1
        return np.minimum(np.maximum(scaled, -1.0), 1.0)  # np.clip, at a third of its cost for a batch

    def denormalise(self, values: FloatArray) -> NDArray[np.float64]:
        """Values [..., A] in [-1, 1] to raw units."""
        low, span = self._low_and_span
        return (np.asarray(values, np.float64) + 1) / 2 * span + low


@dataclass(frozen=True)
class Bins:
    """``count`` edges on [-1, 1] with ``count - 1`` centres between them (RynnVLA-002's scheme).

    A value lies in bin k of 1..count (``numpy.digitize``; the top edge has its own bin, which decodes to the last
    centre), and its id is ``start + 1 + k``.
    """

    count: int = 256

    def __post_init__(self) -> None:
        if self.count < 2:
            raise TokenError(f"bins: {self.count} edges leave no bin; use 2 or more")

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(-1.0, 1.0, self.count)

    @cached_property
    def _edges_and_end(self) -> NDArray[np.float64]:
        return np.append(self.edges, np.nan)  # which no value reaches

    @property
    def centres(self) -> NDArray[np.float64]:
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def encode(self, normalised: FloatArray, *, start: int) -> NDArray[np.int64]:
        """Values in [-1, 1] of any shape to ids ``start + 2 .. start + 1 + count``."""
        values = np.asarray(normalised, np.float64)
        # The bin by arithmetic, which rounding may put one too low or too high: its edges decide, as in numpy.digitize.
        near = np.fmin(np.fmax((values + 1) * ((self.count - 1) / 2), 0), self.count - 1).astype(np.int64)
        bins = near + (self.edges[near] <= values) + (self._edges_and_end[near + 1] <= values)
        ids: NDArray[np.int64] = bins + (start + 1)
        return ids


def decode_ids(ids: Any, centres: Any, *, start: int) -> Any:
    """Token ids of any shape to bin centres; an id outside the bins decodes to the nearest end.

    ``ids`` and ``centres`` are both NumPy arrays or both torch tensors.
    """
    return centres[(ids - start - 2).clip(0, len(centres) - 1)]

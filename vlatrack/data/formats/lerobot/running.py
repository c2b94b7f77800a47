"""Statistics of a feature over a whole dataset, in memory that does not grow with its frames."""

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot.tables import QUANTILES, FeatureStatistics, Values, describe_values

EXACT_ROWS = 1 << 16
BINS = 1 << 13


class RunningStatistics:
    """Statistics of values that come episode by episode.

    Extremes, mean, standard deviation and count are exact. So are the quantiles up to `exact_rows` rows; beyond these
    they are read off a histogram of each dimension, to within 1/2000 of the range of its values.
    """

    def __init__(self, exact_rows: int = EXACT_ROWS) -> None:
        self._exact_rows = exact_rows
        self._held: list[Values] = []  # all rows, until there are too many
        self._histograms: list[_Histogram] = []
        self._count = 0
        self._extremes: tuple[NDArray[np.generic], NDArray[np.generic]] | None = None
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)  # of the distances from the mean, summed

    def add(self, values: Values) -> None:
        """Add [T, D] values of one episode, T at least 1."""
        wide = values.astype(np.float64)
        low, high = values.min(axis=0), values.max(axis=0)
        if self._extremes is not None:
            low, high = np.minimum(low, self._extremes[0]), np.maximum(high, self._extremes[1])
        self._extremes = low, high
        self._add_moments(wide)
        if self._histograms:
            for histogram, column in zip(self._histograms, wide.T, strict=True):
                histogram.add(column)
            return
        self._held.append(values)
        if self._count > self._exact_rows:
            self._histograms = [_Histogram(column) for column in np.concatenate(self._held).astype(np.float64).T]
            self._held.clear()

    def statistics(self) -> FeatureStatistics:
        """Of all that was added, at least one episode."""
        assert self._extremes is not None
        if self._held:
            return describe_values(np.concatenate(self._held))
        low, high = self._extremes
        if low.dtype != np.int64:
            low, high = low.astype(np.float64), high.astype(np.float64)
        quantiles = {
            name: np.clip([histogram.quantile(q) for histogram in self._histograms], low, high)
            for name, q in QUANTILES.items()
        }
        std = np.sqrt(self._squares / self._count)
        return FeatureStatistics({"min": low, "max": high, "mean": self._mean, "std": std, **quantiles}, self._count)

    def _add_moments(self, wide: NDArray[np.float64]) -> None:
        mean, count = wide.mean(axis=0), self._count + len(wide)
        squares = ((wide - mean) ** 2).sum(axis=0)
        if self._count == 0:
            self._mean, self._squares = mean, squares
        else:
            distance = mean - self._mean
            self._squares = self._squares + squares + distance**2 * (self._count * len(wide) / count)
            self._mean = self._mean + distance * (len(wide) / count)
        self._count = count


class _Histogram:
    """Of one dimension. Where values lie beyond its ends the bins become twice as wide, as often as needed: two
    neighbours become one, so no value is counted in a wrong one."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._low = float(values.min())
        span = float(values.max()) - self._low
        self._width = (span or max(1.0, abs(self._low))) / BINS * (1 + 1e-9)
        self._counts = np.zeros(BINS, np.int64)
        self.add(values)

    def add(self, values: NDArray[np.float64]) -> None:
        low, high = float(values.min()), float(values.max())
        while high >= self._low + self._width * BINS:
            self._widen(downwards=False)
        while low < self._low:
            self._widen(downwards=True)
        places = ((values - self._low) / self._width).astype(np.int64)
        self._counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def quantile(self, q: float) -> float:
        """The value below which this share of the values lies."""
        rank = q * (self._counts.sum() - 1)
        cumulative = self._counts.cumsum()
        place = int((cumulative > rank).argmax())
        within = (rank - (cumulative[place] - self._counts[place]) + 0.5) / self._counts[place]
        return float(self._low + (place + within) * self._width)

    def _widen(self, *, downwards: bool) -> None:
        merged = self._counts.reshape(-1, 2).sum(axis=1)
        empty = np.zeros(BINS // 2, np.int64)
        if downwards:
            self._low -= self._width * BINS
        self._counts = np.concatenate([empty, merged] if downwards else [merged, empty])
        self._width *= 2

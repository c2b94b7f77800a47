"""The statistics that a LeRobot dataset keeps of every feature, per episode and over all."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Values = NDArray[np.float32 | np.int64]
NestedNumbers = list[float] | list[list[list[float]]]


@dataclass(frozen=True)
class FeatureStatistics:
    """min, max, mean, std and quantiles, each of the feature's shape, and the number of values behind them."""

    values: dict[str, NDArray[np.generic]]  # every name but "count"
    count: int

    def as_lists(self) -> dict[str, NestedNumbers]:
        """The form of stats.json and of the episode table, in the order of NAMES."""
        lists = {name: array.tolist() for name, array in self.values.items()} | {"count": [self.count]}
        return {name: lists[name] for name in NAMES}


def describe_values(values: Values) -> FeatureStatistics:
    """Statistics of a numeric feature, [T, D], per dimension; integers keep integer extremes."""
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    extremes = values if values.dtype == np.int64 else wide
    return FeatureStatistics(
        values={
            "min": extremes.min(axis=0),
            "max": extremes.max(axis=0),
            "mean": wide.mean(axis=0),
            "std": wide.std(axis=0),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        },
        count=len(values),
    )


@dataclass(frozen=True)
class PixelHistogram:
    """How often each of the 256 values occurs in each colour: exact statistics in constant memory."""

    counts: NDArray[np.int64]  # [3, 256]
    pictures: int

    @classmethod
    def of(cls, frames: NDArray[np.uint8]) -> Self:
        """The histogram of pictures, [T, height, width, 3]."""
        colours = [np.bincount(frames[..., colour].ravel(), minlength=256) for colour in range(3)]
        return cls(np.stack(colours), len(frames))

    def __add__(self, other: "PixelHistogram") -> "PixelHistogram":
        return PixelHistogram(self.counts + other.counts, self.pictures + other.pictures)

    def statistics(self) -> FeatureStatistics:
        """Per colour, on [0, 1], each of shape [3, 1, 1]; the count is that of the pictures."""
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        cumulative = share.cumsum(axis=1)
        mean = share @ levels
        variance = share @ levels**2 - mean**2
        values = {
            "min": levels[(self.counts > 0).argmax(axis=1)],
            "max": levels[255 - (self.counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0)),
            **{name: levels[(cumulative >= q).argmax(axis=1)] for name, q in QUANTILES.items()},
        }
        return FeatureStatistics({name: value.reshape(3, 1, 1) for name, value in values.items()}, self.pictures)

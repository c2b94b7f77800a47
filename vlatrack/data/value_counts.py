"""How often each value occurs: exact while there are few different ones, else with a bounded error, in bounded memory.

A float32 number is counted under a key: 32 bits whose order is that of the numbers. Where there are more different keys
than `MOST_KEYS`, all lose their lowest bits, as few as possible. So the counts of the same values are the same in
whatever order and over however many workers they were made and added up.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import DataError

MOST_KEYS = 1 << 16
"""With 12 bytes each at most 0.8 MB for a dimension."""

Keys = NDArray[np.uint32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ValueCounts:
    """The values of one dimension, and how often each occurs; of different ones that share a key, their middle."""

    keys: Keys  # [K] ascending, without their lowest bits
    counts: Counts  # [K] at least 1
    dropped: int = 0  # how many bits that are; 0: the values are exact

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Self:
        """Of finite numbers [n]."""
        keys = np.sort(_keys_of(values))
        dropped = _too_fine(keys)
        keys >>= np.uint32(dropped)
        first = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        begins = np.concatenate([np.zeros(min(1, len(keys)), np.int64), first])
        return cls(keys[begins], np.diff(begins, append=len(keys)), dropped)

    def __add__(self, other: Self) -> Self:
        dropped = max(self.dropped, other.dropped)
        keys = np.concatenate([part.keys >> np.uint32(dropped - part.dropped) for part in (self, other)])
        order = np.argsort(keys, kind="stable")
        return self._fitting(keys[order], np.concatenate([self.counts, other.counts])[order], dropped)

    @classmethod
    def _fitting(cls, keys: Keys, counts: Counts, dropped: int) -> Self:
        """Of ascending keys, which may occur several times."""
        more = _too_fine(keys)
        return cls(*_merged(keys >> np.uint32(more), counts), dropped + more)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def is_exact(self) -> bool:
        return self.dropped == 0

    def values(self) -> NDArray[np.float64]:
        """The different values [K], ascending; relative error at most 2^(dropped - 24)."""
        middle = (1 << self.dropped) >> 1
        return _values_of((self.keys << np.uint32(self.dropped)) + np.uint32(middle))

    def at(self, ranks: Sequence[int]) -> NDArray[np.float64]:
        """The values of these ranks [R], 0 for the smallest."""
        return self.values()[self._positions(ranks)]

    def _positions(self, ranks: Sequence[int]) -> NDArray[np.intp]:
        return np.searchsorted(np.cumsum(self.counts), ranks, side="right")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives back the same counts."""
        content = self.keys.astype("<u4").tobytes() + self.counts.astype("<i8").tobytes()
        packed = base64.b64encode(zlib.compress(content)).decode("ascii")
        return {"dropped": self.dropped, "number": len(self.keys), "content": packed}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; DataError for anything else."""
        try:
            dropped, number = int(stored["dropped"]), int(stored["number"])
            if not (0 <= dropped < 32 and 0 <= number <= MOST_KEYS):
                raise ValueError("out of range")
            packed = base64.b64decode(stored["content"], validate=True)
            content = zlib.decompressobj().decompress(packed, 12 * number + 1)  # no more than there may be
            if len(content) != 12 * number:
                raise ValueError("of another length")
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
            raise DataError(f"statistics: damaged counts of values ({error}); remove the file") from None
        keys = np.frombuffer(content[: 4 * number], "<u4").astype(np.uint32)
        counts = np.frombuffer(content[4 * number :], "<i8").astype(np.int64)
        if (np.diff(keys.astype(np.int64)) <= 0).any() or (counts < 1).any() or (keys >> (31 - dropped) > 1).any():
            raise DataError("statistics: damaged counts of values (not ascending); remove the file")
        return cls(keys, counts, dropped)


def exact_values(
    counts: Sequence[ValueCounts], ranks: Sequence[int], arrays: Iterable[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The values of these ranks in each dimension, [R, D], exactly.

    Args:
        counts: of each dimension, over all values of `arrays`.
        arrays: [T, D] each; read only if the counts are not exact.
    """
    found = [of_dimension._positions(ranks) for of_dimension in counts]
    if all(of_dimension.is_exact for of_dimension in counts):
        return np.stack([c.values()[place] for c, place in zip(counts, found, strict=True)], axis=1)
    # Which value of a shared key it is: its dropped bits are counted, for the keys in which the ranks lie.
    places = {(d, int(key)) for d, (c, place) in enumerate(zip(counts, found, strict=True)) for key in c.keys[place]}
    low_bits = {(d, key): np.zeros(1 << counts[d].dropped, np.int64) for d, key in places}
    for array in arrays:
        for (d, key), histogram in low_bits.items():
            keys, dropped = _keys_of(array[:, d]), np.uint32(counts[d].dropped)
            inside = keys[keys >> dropped == key] & np.uint32((1 << counts[d].dropped) - 1)
            histogram += np.bincount(inside, minlength=len(histogram))
    columns = []
    for d, (c, place) in enumerate(zip(counts, found, strict=True)):
        before = np.concatenate([[0], np.cumsum(c.counts)])[place]
        keys = c.keys[place]
        low = [
            int(np.searchsorted(np.cumsum(low_bits[d, int(key)]), rank - start, side="right"))
            for key, rank, start in zip(keys, ranks, before, strict=True)
        ]
        columns.append(_values_of((keys << np.uint32(c.dropped)) | np.array(low, np.uint32)))
    return np.stack(columns, axis=1)


def quantile_ranks(count: int, wanted: Sequence[float]) -> tuple[list[int], list[float]]:
    """The ranks of the two neighbours of each quantile, and how far between them it lies."""
    places = [(count - 1) * share for share in wanted]
    ranks = [rank for place in places for rank in (math.floor(place), min(math.floor(place) + 1, count - 1))]
    return ranks, [place - math.floor(place) for place in places]


def interpolated(neighbours: NDArray[np.float64], fractions: Sequence[float]) -> NDArray[np.float64]:
    """Of pairs of neighbours, flat: [2 Q] → [Q]."""
    pairs = zip(neighbours.reshape(-1, 2), fractions, strict=True)
    return np.array([np.quantile(pair, fraction) for pair, fraction in pairs])


def _too_fine(keys: Keys) -> int:
    """How many of their lowest bits ascending keys have to lose, so that no more than `MOST_KEYS` are different."""
    if len(keys) <= MOST_KEYS:
        return 0
    # Two neighbours become one as soon as the highest bit in which they differ is dropped.
    _, highest = np.frexp((keys[1:] ^ keys[:-1]).astype(np.float64))
    told_apart = np.cumsum(np.bincount(highest, minlength=33)[::-1])[::-1] + 1  # [n]: keys, without n - 1 bits
    return int(np.argmax(told_apart[1:] <= MOST_KEYS))


def _merged(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    """The different ones of ascending keys, with the sums of their counts."""
    if len(keys) == 0:
        return keys, counts
    is_last = np.concatenate([keys[1:] != keys[:-1], [True]])
    if is_last.all():
        return keys, counts
    return keys[is_last], np.diff(np.cumsum(counts)[is_last], prepend=0)  # a third of the time of np.add.reduceat


def _keys_of(values: NDArray[np.float32]) -> Keys:
    bits = (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.uint32)  # there is one zero, not -0.0
    keys: Keys = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return keys


def _values_of(keys: Keys) -> NDArray[np.float64]:
    bits = np.where(keys >> np.uint32(31), keys & np.uint32((1 << 31) - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)

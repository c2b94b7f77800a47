"""Metric values as 64-bit hashes: two sides with millions of them, in any order, are compared in little memory.

The hashes of a side lie in a file without a name, which is gone with the process however that ends. It consists of
sorted chunks; a comparison reads one range of hashes at a time from all of them.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.tracking.backends.base import NumberFormat

Hashes = NDArray[np.uint64]

_RANGES = 256
_CHUNK = 1 << 18
_BOUNDS = (np.arange(1, _RANGES, dtype=np.uint64)) << np.uint64(64 - 8)
_HASH_BYTES = 8


@dataclass(frozen=True)
class ValueBatch:
    """Some metric values: the key, Unix time in milliseconds, step and number of each, all [N]."""

    keys: Sequence[str]
    t_ms: NDArray[np.int64]
    step: NDArray[np.int64]
    value: NDArray[np.float64]


class ValueHasher:
    """Hashes values as a tracker with this number format would keep them. -0.0 counts as 0.0, all NaNs as one: not
    every store tells them apart."""

    def __init__(self, numbers: NumberFormat) -> None:
        self._numbers = numbers
        self._known: dict[str, int] = {}

    def __call__(self, batch: ValueBatch) -> Hashes:
        """[N], of equal values equal."""
        known = self._known
        for key in set(batch.keys) - known.keys():
            digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
            known[key] = int.from_bytes(digest)
        hashes = np.fromiter(map(known.__getitem__, batch.keys), np.uint64, len(batch.keys))
        for part in (batch.t_ms, batch.step, self._kept(batch.value)):
            hashes = _mixed(hashes + part.view(np.uint64))
        return hashes

    def _kept(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._numbers.single:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32).astype(np.float64)
        if np.isfinite(self._numbers.infinity):
            values = np.clip(values, -self._numbers.infinity, self._numbers.infinity)
        return np.where(np.isnan(values), np.nan, values + 0.0)


def _mixed(x: Hashes) -> Hashes:
    """Every bit depends on every bit: the finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class HashFile:
    """The hashes of one side; `add` them all, then read them range by range. Use as a context."""

    def __init__(self, folder: Path) -> None:
        place = folder if os.access(folder, os.W_OK | os.X_OK) else None
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115  # closed by the context
        self._pending: list[Hashes] = []
        self._count = 0
        self._size = 0
        self._chunks: list[tuple[int, NDArray[np.int64]]] = []
        """Where each chunk begins, and at which of its hashes each range ends, both in hashes."""

    def __enter__(self) -> "HashFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, hashes: Hashes) -> None:
        self._pending.append(hashes)
        self._count += len(hashes)
        if self._count >= _CHUNK:
            self._write()

    def ranges(self) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
        """The distinct hashes and how often each was added, ascending, in parts that are the same for every file."""
        self._write()
        for index in range(_RANGES):
            parts = [self._read(begin, ends, index) for begin, ends in self._chunks]
            yield np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]), return_counts=True)

    def read(self, *, at_most: int | None = None) -> Hashes:
        """The distinct hashes, ascending; of more than `at_most`, the first ranges that hold about so many."""
        parts, count = [np.empty(0, np.uint64)], 0
        for distinct, _ in self.ranges():
            if at_most is not None and count + len(distinct) > at_most and count:
                break
            parts.append(distinct)
            count += len(distinct)
        return np.concatenate(parts)

    def _write(self) -> None:
        if not self._pending:
            return
        chunk = np.sort(np.concatenate(self._pending))
        self._pending, self._count = [], 0
        ends = np.append(np.searchsorted(chunk, _BOUNDS), len(chunk))
        self._file.seek(self._size * _HASH_BYTES)
        self._file.write(chunk.data)
        self._file.flush()
        self._chunks.append((self._size, ends))
        self._size += len(chunk)

    def _read(self, begin: int, ends: NDArray[np.int64], index: int) -> Hashes:
        first = int(ends[index - 1]) if index else 0
        size = (int(ends[index]) - first) * _HASH_BYTES
        return np.frombuffer(os.pread(self._file.fileno(), size, (begin + first) * _HASH_BYTES), np.uint64)


@dataclass(frozen=True)
class HashComparison:
    """How two sides differ: distinct values that are here and not there, the other way round, and how many times more
    often values stand there than here."""

    missing: int = 0
    superfluous: int = 0
    doubled: int = 0
    here: int = 0
    """Distinct values."""
    there: int = 0
    """Distinct values."""


def compare(here: HashFile, there: HashFile, missing: HashFile) -> HashComparison:
    """Compare two sides, and keep the hashes that are missing there."""
    counts: Any = np.zeros(5, np.int64)
    for (ours, our_counts), (theirs, their_counts) in zip(here.ranges(), there.ranges(), strict=True):
        lacking = np.setdiff1d(ours, theirs, assume_unique=True)
        missing.add(lacking)
        both, at_ours, at_theirs = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        doubled = np.maximum(their_counts[at_theirs] - our_counts[at_ours], 0).sum()
        counts += (len(lacking), len(theirs) - len(both), doubled, len(ours), len(theirs))
    return HashComparison(*(int(count) for count in counts))


def is_among(hashes: Hashes, found: Hashes) -> NDArray[np.bool_]:
    """[N]: which of `hashes` are in `found`, which is sorted."""
    if len(found) == 0:
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(found, hashes), len(found) - 1)
    return np.asarray(found[at] == hashes)

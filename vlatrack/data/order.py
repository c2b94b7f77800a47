"""In which order an epoch shows its samples: by the seed and the epoch alone, so a run can resume at any position, with
any number of workers and ranks.

An order is one array of sample numbers, 4 bytes each, from which batches are cut when they are asked for.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16  # numbers that are computed at a time

_VARIANTS = (1 << 32) - 1

SampleNumbers = NDArray[np.uint32 | np.int64]


class BatchOrder(Sequence[NDArray[np.int64]]):
    """The sample numbers of each batch, int64 [batch_size], the last of which may be smaller."""

    def __init__(self, samples: SampleNumbers, batch_size: int) -> None:
        """
        Args:
            samples: the numbers in their order, kept as they are.
        """
        assert batch_size > 0, batch_size
        self.samples, self.batch_size = samples, batch_size

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-len(self.samples) // self.batch_size)

    @overload
    def __getitem__(self, index: SupportsIndex) -> NDArray[np.int64]: ...

    @overload
    def __getitem__(self, index: slice) -> "BatchOrder": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "NDArray[np.int64] | BatchOrder":
        """A batch, or the batches of a stretch, which share the memory of all."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "batches are taken in their order"
            return BatchOrder(self.samples[start * self.batch_size : stop * self.batch_size], self.batch_size)
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        start = number % len(self) * self.batch_size
        return self.samples[start : start + self.batch_size].astype(np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[number] for number in range(len(self)))


@dataclass(frozen=True)
class EpochOrders:
    """The batches of every epoch of a training."""

    sizes: tuple[int, ...]  # how many samples each dataset has; their numbers follow one another
    batch_size: int
    seed: int
    weights: tuple[float, ...] | None = None  # of the datasets; None: an epoch has every sample once
    epoch_samples: int | None = None  # None: as many as there are; goes with weights
    variants: int = 0  # of each sample beside the original: sample n + v * (all samples) is variant v of sample n

    def __len__(self) -> int:
        """How many samples an epoch has."""
        return sum(self.sizes) if self.epoch_samples is None else self.epoch_samples

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return -(-len(self) // self.batch_size)

    def of(self, epoch: int) -> BatchOrder:
        """The batches of an epoch, counted from 0; each sample in one of its variants, or as it is."""
        order = self._originals(epoch)
        if not self.variants:
            return order
        # No order of samples begins with these random numbers.
        drawn = np.random.default_rng([self.seed, epoch, _VARIANTS]).integers(0, self.variants + 1, len(order.samples))
        total = sum(self.sizes)
        numbers = (order.samples + drawn * total).astype(_number_type(total * (self.variants + 1)))
        return BatchOrder(numbers, self.batch_size)

    def _originals(self, epoch: int) -> BatchOrder:
        if self.weights is None:
            assert self.epoch_samples is None, "without weights each sample is shown once"
            return epoch_order(sum(self.sizes), batch_size=self.batch_size, seed=self.seed, epoch=epoch)
        return mixture_order(
            self.sizes,
            self.weights,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            epoch_samples=self.epoch_samples,
        )


def epoch_order(samples: int, *, batch_size: int, seed: int, epoch: int) -> BatchOrder:
    """Every sample once, shuffled.

    The order is that of ``np.random.default_rng([seed, epoch]).permutation(samples)``, in half of its memory.
    """
    return BatchOrder(_shuffled(samples, [seed, epoch]), batch_size)


def mixture_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    epoch_samples: int | None = None,
) -> BatchOrder:
    """An epoch of several datasets of which each has a fixed share.

    The samples of a dataset come in passes: each pass has all of them, in another order, and goes on in the next epoch
    where this one left it. So a dataset with a small share is seen whole after some epochs, and none of its samples
    is seen again before all others were.

    Args:
        sizes: how many samples each dataset has, at least one; their numbers follow one another.
        weights: of each, above 0; its share is its weight in their sum.
        epoch_samples: how many samples an epoch has; None: as many as the datasets have together.
    """
    assert len(sizes) == len(weights), (sizes, weights)
    assert min(*sizes, *weights) > 0, (sizes, weights)
    counts = epoch_shares(weights, sum(sizes) if epoch_samples is None else epoch_samples)
    # The samples are shuffled in their passes; here it is decided which dataset each place of the epoch belongs to.
    owners = np.repeat(np.arange(len(sizes), dtype=np.uint8 if len(sizes) <= 256 else np.uint32), counts)
    np.random.default_rng([seed, epoch]).shuffle(owners)
    order = np.empty(len(owners), _number_type(sum(sizes)))
    start = 0
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        drawn = _draws(size, count * epoch, count, seed=seed, part=part).astype(order.dtype, copy=False)
        order[owners == part] = drawn + np.asarray(start, order.dtype)
        start += size
    return BatchOrder(order, batch_size)


def epoch_shares(weights: Sequence[float], samples: int) -> list[int]:
    """How many of an epoch's samples each dataset gives: those of its share, rounded so that the sum is right, and at
    least one where there are enough for all."""
    exact = np.asarray(weights, np.float64) / sum(weights) * samples
    counts = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(counts - exact, kind="stable")
    counts[largest_first[: samples - int(counts.sum())]] += 1
    while samples >= len(counts) and counts.min() == 0:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return [int(count) for count in counts]


def even_subset(samples: int, *, batch_size: int, limit: int | None) -> BatchOrder:
    """The samples of an evaluation: in order, evenly thinned to ``limit``.

    They are those of ``np.linspace(0, samples - 1, count).round()``, computed without its memory.
    """
    count = samples if limit is None else min(samples, limit)
    chosen = np.empty(count, _number_type(samples))
    step = (samples - 1) / (count - 1) if count > 1 else 0.0
    for start in range(0, count, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, count), dtype=np.float64)
        chosen[start : start + _BLOCK] = (block * step).round()
    if count > 1:
        chosen[-1] = samples - 1
    return BatchOrder(chosen, batch_size)


def _draws(size: int, start: int, count: int, *, seed: int, part: int) -> SampleNumbers:
    """The draws from `start` on, of a dataset whose passes follow one another without end."""
    drawn, done = np.empty(count, _number_type(size)), 0
    while done < count:
        number, position = divmod(start + done, size)
        # The last word is never 0, so that no pass has the random numbers of an epoch.
        own = _shuffled(size, [seed, number, part + 1])[position : position + count - done]
        drawn[done : done + len(own)] = own
        done += len(own)
    return drawn


def _shuffled(size: int, seed: Sequence[int]) -> SampleNumbers:
    """The numbers below `size`: `Generator.permutation` shuffles an int64 array of them by the same random numbers."""
    numbers = np.arange(size, dtype=_number_type(size))
    np.random.default_rng(seed).shuffle(numbers)
    return numbers


def _number_type(size: int) -> np.dtype[np.uint32 | np.int64]:
    return np.dtype(np.uint32 if size <= 1 << 32 else np.int64)

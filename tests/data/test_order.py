"""The order of an epoch's samples, which the seed and the epoch decide."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from vlatrack.data.dealing import deal_rows
from vlatrack.data.order import BatchOrder, epoch_order, epoch_shares, even_subset, mixture_order


def numbers(order: BatchOrder) -> list[int]:
    return [number for batch in order for number in batch.tolist()]


@pytest.mark.parametrize("samples", [1, 2, 31, 32, 33, 1000, 65_535, 65_536, 65_537, 300_001])
def test_an_epoch_is_the_permutation_of_numpy_to_the_bit(samples: int) -> None:
    for seed, epoch in ((0, 0), (7, 3), (2**31 - 1, 1000)):
        expected = np.random.default_rng([seed, epoch]).permutation(samples)
        order = epoch_order(samples, batch_size=32, seed=seed, epoch=epoch)
        assert order.samples.itemsize == 4
        batches = np.array_split(expected, range(32, samples, 32))
        assert len(order) == len(batches)
        assert all(
            own.dtype == np.int64 and np.array_equal(own, batch) for own, batch in zip(order, batches, strict=True)
        )


def test_batches_are_cut_where_they_are_asked_for() -> None:
    order = epoch_order(50, batch_size=8, seed=1, epoch=2)
    whole = [batch.tolist() for batch in order]
    assert [len(batch) for batch in whole] == [8] * 6 + [2]
    assert order[2].tolist() == whole[2]
    assert order[-1].tolist() == whole[-1]
    for stretch in (slice(3, None), slice(0, 2), slice(2, 5), slice(6, 99), slice(7, None), slice(-2, None)):
        cut = order[stretch]
        assert [batch.tolist() for batch in cut] == whole[stretch]
        assert len(cut) == len(whole[stretch])
        assert not len(cut) or np.shares_memory(cut.samples, order.samples)
    assert [batch.tolist() for batch in order[2:6][1:]] == whole[3:6]
    with pytest.raises(IndexError):
        order[7]


def test_without_samples_there_is_no_batch() -> None:
    assert list(epoch_order(0, batch_size=4, seed=0, epoch=0)) == []
    assert list(even_subset(0, batch_size=4, limit=None)) == []


def test_an_even_subset_is_the_rounded_linspace_of_numpy() -> None:
    generator = np.random.default_rng(0)
    sizes = [(samples, None) for samples in (1, 2, 999)] + [(1, 1), (5, 1), (2_500_000, 1_234_567)]
    sizes += [tuple(map(int, generator.integers(1, 5000, 2))) for _ in range(200)]
    for samples, limit in sizes:
        count = samples if limit is None else min(samples, limit)
        expected = np.linspace(0, samples - 1, count).round().astype(int)
        assert np.array_equal(even_subset(samples, batch_size=64, limit=limit).samples, expected), (samples, limit)


def test_an_order_takes_four_bytes_a_sample_and_a_mixture_less_than_sixteen() -> None:
    samples = 1_000_000
    tracemalloc.start()
    try:
        for bytes_of_one, make in (
            (4.1, lambda: epoch_order(samples, batch_size=32, seed=0, epoch=1)),
            (16, lambda: mixture_order([samples // 4, samples * 3 // 4], [3, 1], batch_size=32, seed=0, epoch=1)),
            (16, lambda: even_subset(samples, batch_size=32, limit=None)),
        ):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            order = make()
            assert tracemalloc.get_traced_memory()[1] - before < bytes_of_one * samples
            assert order.samples.nbytes == 4 * samples
    finally:
        tracemalloc.stop()


SIZES, WEIGHTS = (700, 50, 250), (1.0, 1.0, 2.0)


def mixture(epoch: int, **changed: int) -> BatchOrder:
    return mixture_order(SIZES, WEIGHTS, batch_size=16, **{"seed": 3, "epoch": epoch, **changed})


def of_part(order: BatchOrder, part: int) -> list[int]:
    start = sum(SIZES[:part])
    return [number for number in numbers(order) if start <= number < start + SIZES[part]]


def test_each_dataset_of_a_mixture_has_its_share_of_an_epoch_as_long_as_all_together() -> None:
    for epoch in range(3):
        assert [len(of_part(mixture(epoch), part)) for part in range(3)] == [250, 250, 500]
    shorter = mixture(0, epoch_samples=100)
    assert [len(of_part(shorter, part)) for part in range(3)] == [25, 25, 50]


def test_a_dataset_repeats_no_sample_before_all_were_seen_from_epoch_to_epoch() -> None:
    epochs = [mixture(epoch) for epoch in range(14)]
    for part, size in enumerate(SIZES):
        seen = [number for order in epochs for number in of_part(order, part)]
        passes = [seen[start : start + size] for start in range(0, len(seen) - size + 1, size)]
        assert len(passes) >= 4
        expected = list(range(sum(SIZES[:part]), sum(SIZES[: part + 1])))
        assert all(sorted(one) == expected for one in passes)
        assert passes[0] != passes[1]
        # What is left is part of another pass.
        assert len(seen) % size == 0 or max(Counter(seen[len(passes) * size :]).values()) == 1


def test_a_mixture_is_mixed_in_every_stretch_of_an_epoch() -> None:
    order = mixture(1)
    for stretch in (order[:20], order[20:40], order[40:]):
        found = [len(of_part(stretch, part)) / len(numbers(stretch)) for part in range(3)]
        assert found == pytest.approx([0.25, 0.25, 0.5], abs=0.1)


def test_an_epoch_of_a_mixture_is_the_same_whenever_it_is_asked_for_and_follows_the_seed() -> None:
    wanted = numbers(mixture(9))
    assert numbers(mixture(9)) == wanted
    assert numbers(mixture(9, seed=4)) != wanted
    assert numbers(mixture(8)) != wanted


def test_shares_are_rounded_to_the_sum_and_no_dataset_is_left_out() -> None:
    assert epoch_shares([1, 1, 1], 100) == [34, 33, 33]
    assert epoch_shares([1, 1000, 1000], 100) == [1, 49, 50]
    assert epoch_shares([1, 1, 1], 2) == [1, 1, 0]
    generator = np.random.default_rng(0)
    for _ in range(100):
        weights, samples = generator.uniform(0.001, 5, 6).tolist(), int(generator.integers(6, 500))
        counts = epoch_shares(weights, samples)
        assert sum(counts) == samples
        assert min(counts) >= 1


@pytest.mark.parametrize("order", [epoch_order(1000, batch_size=24, seed=5, epoch=2), mixture(4)])
def test_the_samples_of_a_step_are_the_same_with_any_number_of_ranks_and_after_a_resume(order: BatchOrder) -> None:
    steps = [sorted(batch.tolist()) for batch in order]
    for world_size, micro_batch, done in ((1, None, 0), (2, 4, 11), (3, 5, 40), (8, 1, 7)):
        for expected, batch in zip(steps[done:], order[done:], strict=True):
            ranks = [
                deal_rows(batch, rank=rank, world_size=world_size, micro_batch=micro_batch)
                for rank in range(world_size)
            ]
            assert sorted(int(row) for rank in ranks for own in rank for row in own) == expected

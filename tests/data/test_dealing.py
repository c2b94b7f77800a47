"""Rows of a step in micro batches of similar length."""

import math

import numpy as np
import pytest

from vlatrack.data.dealing import deal_rows

LENGTHS = np.random.default_rng(0).integers(20, 100, 64)


def deal(
    rows: list[int], by_length: bool, *, rank: int = 0, world_size: int = 1, micro_batch: int | None = None
) -> list[list[int]]:
    lengths_of = LENGTHS.__getitem__ if by_length else None
    own = deal_rows(np.asarray(rows), lengths_of, rank=rank, world_size=world_size, micro_batch=micro_batch)
    return [part.tolist() for part in own]


def dealt(rows: list[int], world_size: int, micro_batch: int | None) -> list[list[list[int]]]:
    """By rank, the rows of each micro batch."""
    return [deal(rows, True, rank=rank, world_size=world_size, micro_batch=micro_batch) for rank in range(world_size)]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize(
    ("rows", "world_size", "micro_batch"), [(16, 1, 4), (5, 2, 2), (1, 3, 2), (7, 3, None), (64, 4, 5), (9, 2, 16)]
)
def test_each_row_has_one_place_and_ranks_have_equal_numbers_of_micro_batches(
    by_length: bool, rows: int, world_size: int, micro_batch: int | None
) -> None:
    step = list(range(rows))
    ranks = [
        deal(step, by_length, rank=rank, world_size=world_size, micro_batch=micro_batch) for rank in range(world_size)
    ]
    assert sorted(row for batches in ranks for batch in batches for row in batch) == step
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == math.ceil(math.ceil(rows / world_size) / (micro_batch or rows))
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert max(sizes) <= (micro_batch or rows)
    if by_length:
        assert max(sizes) - min(sizes) <= 1


def test_the_only_micro_batch_of_a_single_rank_keeps_its_order() -> None:
    step = [5, 3, 60, 1]
    assert dealt(step, 1, None) == dealt(step, 1, 4) == [[step]]


def test_rows_that_share_a_micro_batch_are_of_similar_length() -> None:
    def padding(ranks: list[list[list[int]]]) -> float:
        batches = [[LENGTHS[row] for row in batch] for rank in ranks for batch in rank]
        positions = sum(max(batch) * len(batch) for batch in batches)
        return 1 - sum(map(sum, batches)) / positions

    step = list(range(64))
    as_they_are = [deal(step, False, rank=rank, world_size=2, micro_batch=4) for rank in range(2)]
    assert padding(as_they_are) > 0.2
    assert padding(dealt(step, 2, 4)) < 0.05


def test_ranks_have_rows_of_similar_length_in_each_round_and_equal_work_in_all() -> None:
    one, other = dealt(list(range(64)), 2, 4)
    for own, beside in zip(one, other, strict=True):
        assert abs(max(LENGTHS[row] for row in own) - max(LENGTHS[row] for row in beside)) <= 15
    work = [sum(LENGTHS[row] for batch in rank for row in batch) for rank in (one, other)]
    assert abs(work[0] - work[1]) / sum(work) < 0.01


def test_the_longest_rows_come_first_in_parts_of_equal_size_which_are_dealt_to_and_fro() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        rows = generator.permutation(64)[: generator.integers(1, 65)].tolist()
        world_size, micro_batch = int(generator.integers(1, 9)), int(generator.integers(1, 20))
        ranks = dealt(rows, world_size, micro_batch)
        rounds = len(ranks[0])
        by_length = sorted(rows, key=LENGTHS.__getitem__, reverse=True)
        parts = np.array_split(by_length if rounds * world_size > 1 else rows, rounds * world_size)
        for rank, own in enumerate(ranks):
            turned = [(turn * world_size, world_size - 1 - rank if turn % 2 else rank) for turn in range(rounds)]
            assert own == [parts[first + place].tolist() for first, place in turned]

"""How the rows of an optimiser step are dealt to ranks and micro batches.

The gradient of a step is that of all of its rows, wherever each of them is. So rows of similar length may share a micro
batch, where they need little padding, and ranks, which wait for each other in every micro batch, get equal work.
"""

from collections.abc import Callable, Sequence

import numpy as np


def deal_rows(
    rows: Sequence[int],
    length_of: Callable[[int], int] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int | None = None,
) -> list[list[int]]:
    """This rank's rows of each micro batch, of which every rank has as many; those it has no rows for are empty.

    Args:
        rows: of the whole step.
        length_of: the number of tokens of a row, by which rows are dealt, the longest first; None: in their order. The
            rows of one rank's only micro batch keep their order in any case.
        micro_batch: most rows of one; None: a single one.
    """
    largest_share = -(-len(rows) // world_size)
    size = micro_batch or largest_share
    rounds = -(-largest_share // size)
    if length_of is None:
        own = rows[rank::world_size]
        return [list(own[start : start + size]) for start in range(0, rounds * size, size)]
    parts = rounds * world_size
    ordered = list(rows) if parts == 1 else sorted(rows, key=length_of, reverse=True)
    dealt = [part.tolist() for part in np.array_split(np.asarray(ordered, np.int64), parts)]
    # Each second round goes the other way, so that no rank has the longest rows of every one.
    return [dealt[turn * world_size + (world_size - 1 - rank if turn % 2 else rank)] for turn in range(rounds)]

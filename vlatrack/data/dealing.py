"""How the rows of an optimiser step are dealt to ranks and micro batches.

The gradient of a step is that of all of its rows, wherever each of them is. So rows of similar length may share a micro
batch, where they need little padding, and ranks, which wait for each other in every micro batch, get equal work.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def deal_rows(
    rows: Rows,
    lengths_of: Callable[[Rows], Rows] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int | None = None,
) -> list[Rows]:
    """This rank's rows of each micro batch, of which every rank has as many; those it has no rows for are empty.

    Args:
        rows: int64 [n], of the whole step.
        lengths_of: the numbers of tokens of rows, by which they are dealt, the longest first; None: in their order. The
            rows of one rank's only micro batch keep their order in any case.
        micro_batch: most rows of one; None: a single one.
    """
    largest_share = -(-len(rows) // world_size)
    size = micro_batch or largest_share
    rounds = -(-largest_share // size)
    if lengths_of is None:
        own = rows[rank::world_size]
        return [own[start : start + size] for start in range(0, rounds * size, size)]
    parts = rounds * world_size
    if parts > 1:  # those of equal length stay in their order
        rows = rows[np.argsort(-lengths_of(rows), kind="stable")]
    # Each second round goes the other way, so that no rank has the longest rows of every one.
    wanted = [turn * world_size + (world_size - 1 - rank if turn % 2 else rank) for turn in range(rounds)]
    # The first `larger` parts have a row more than the others.
    smaller, larger = divmod(len(rows), parts) if parts else (0, 0)
    starts = [part * smaller + min(part, larger) for part in range(parts + 1)]
    return [rows[starts[part] : starts[part + 1]] for part in wanted]

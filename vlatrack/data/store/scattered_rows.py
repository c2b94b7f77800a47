"""Rows of many arrays at once, whichever array each is in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray


class ScatteredRows:
    """Rows of arrays of one type and width that lie anywhere in memory, such as those of memory-mapped shards.

    A batch has rows of as many arrays as it has samples: to ask one array after another would cost more than all the
    rest of a batch. Instead all arrays are seen as one, from the lowest address on, and a row is found by its distance
    from there. Only rows that exist are read: what lies between the arrays belongs to others, or to nobody.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        """
        Args:
            arrays: [rows of its own, D].
        """
        self._arrays = arrays  # which must stay in memory, and where they are
        if not arrays:
            return
        first = arrays[0]
        assert all(array.flags.c_contiguous and array.dtype == first.dtype for array in arrays)
        assert all(array.shape[1:] == first.shape[1:] and array.ndim == 2 for array in arrays)
        addresses = np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
        self._width = first.shape[1]
        self._lengths = np.array([len(array) for array in arrays], np.uint64)
        self._begins, odd = np.divmod(addresses - addresses.min(), first.itemsize)
        assert not odd.any(), "arrays begin at multiples of their numbers' size"
        end = int(self._begins.max()) + max(array.size for array in arrays)
        lowest = arrays[int(addresses.argmin())]
        # Of each place in memory, counted in numbers, the row that begins there.
        self._rows = as_strided(lowest, (end, self._width), (first.itemsize, first.itemsize), writeable=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ScatteredRows, (self._arrays,)  # a copy of the arrays lies elsewhere

    def gather(self, which: NDArray[np.integer], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows [n, m, D].

        Args:
            which: [n] the number of an array.
            rows: [n, m] rows of each, from 0.

        Raises:
            IndexError: an array does not have such a row.
        """
        if (rows.view(np.uint64) >= self._lengths[which][:, None]).any():  # negative ones are very large there
            raise IndexError(f"rows {rows.min()} to {rows.max()} are asked for of arrays that end before")
        found: NDArray[Any] = self._rows[self._begins[which][:, None] + rows * self._width]
        return found

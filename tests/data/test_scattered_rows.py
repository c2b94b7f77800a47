import pickle

import numpy as np
import pytest

from vlatrack.data.store.scattered_rows import ScatteredRows

ARRAYS = [np.random.default_rng(number).integers(0, 9000, (7 + number, 5)).astype(np.uint16) for number in range(50)]


def test_rows_are_those_of_the_arrays_that_were_asked() -> None:
    random = np.random.default_rng(0)
    which, rows = random.integers(0, 50, 64), random.integers(0, 7, (64, 3))
    expected = np.stack([ARRAYS[array][own] for array, own in zip(which, rows, strict=True)])
    gathered = ScatteredRows(ARRAYS)
    np.testing.assert_array_equal(gathered.gather(which, rows), expected)
    elsewhere = pickle.loads(pickle.dumps(gathered))
    np.testing.assert_array_equal(elsewhere.gather(which, rows), expected)


@pytest.mark.parametrize("row", [-1, 7])
def test_no_row_is_read_that_an_array_does_not_have(row: int) -> None:
    with pytest.raises(IndexError, match="arrays that end before"):
        ScatteredRows(ARRAYS).gather(np.array([1, 0]), np.array([[0], [row]]))


def test_nothing_asked_is_nothing_found() -> None:
    assert ScatteredRows(ARRAYS).gather(np.empty(0, np.int64), np.empty((0, 2), np.int64)).shape == (0, 2, 5)

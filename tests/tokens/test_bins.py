import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.errors import TokenError
from vlatrack.tokens.bins import Bins, ValueRange, decode_ids

START = 10004


@given(st.integers(2, 600), st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_decoding_an_encoded_value_errs_by_at_most_half_a_bin(count: int, values: list[float]) -> None:
    bins = Bins(count)
    ids = bins.encode(np.asarray(values), start=START)
    assert ids.min() >= START + 2
    assert ids.max() <= START + 1 + count
    decoded = decode_ids(ids, bins.centres, start=START)
    assert np.abs(decoded - values).max() <= 1 / (count - 1) + 1e-12


@pytest.mark.parametrize("count", [2, 3, 100, 255, 256, 257, 1000])
def test_bins_are_those_of_digitize_to_the_last_bit(count: int) -> None:
    bins = Bins(count)
    beside = [np.nextafter(bins.edges, side) for side in (-np.inf, np.inf)]
    outside = [-np.inf, -7.0, 7.0, np.inf]
    values = np.concatenate([bins.edges, *beside, outside, np.random.default_rng(0).uniform(-1, 1, 10_000)])
    expected = START + 1 + np.digitize(values, bins.edges)
    np.testing.assert_array_equal(bins.encode(values, start=START), expected)


def test_ids_outside_the_bins_decode_to_the_nearest_end() -> None:
    centres = Bins(256).centres
    decoded = decode_ids(np.asarray([3, 65535]), centres, start=START)
    assert decoded.tolist() == [centres[0], centres[-1]]


def test_fewer_than_two_edges_are_refused() -> None:
    with pytest.raises(TokenError, match="2 or more"):
        Bins(1)


def test_a_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(TokenError, match=r"low\[1\] = 2 is above high\[1\] = 1"):
        ValueRange((0.0, 2.0), (1.0, 1.0))


def test_a_dimension_that_never_changes_normalises_to_minus_one() -> None:
    assert ValueRange((0.5,), (0.5,)).normalise(np.asarray([[0.5]])).tolist() == [[-1.0]]


@given(st.lists(st.floats(-3, 5), min_size=2, max_size=2))
def test_values_inside_the_range_survive_normalising_and_back(values: list[float]) -> None:
    value_range = ValueRange((-3.0, -3.0), (5.0, 5.0))
    there = value_range.normalise(np.asarray(values))
    np.testing.assert_allclose(value_range.denormalise(there), values, atol=1e-7)

"""Normalisation statistics: how they are computed, kept and told apart."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.data.episodes import Episode
from vlatrack.data.statistics import NormStats
from vlatrack.errors import DataError
from vlatrack.tokens.bins import ValueRange


def episodes_of(*values: float, states: bool = True) -> list[Episode]:
    """An episode of one step for each value, which is its action; its state is ten times as large."""
    arrays = [np.array([[value]], np.float32) for value in values]
    return [Episode(i, "push", array, 10 * array if states else None) for i, array in enumerate(arrays)]


def test_they_are_extremes_or_quantiles() -> None:
    episodes = episodes_of(*range(101))
    extremes = NormStats.from_episodes(episodes, method="minmax", use_state=True, name="demos")
    assert extremes == NormStats(ValueRange((0.0,), (100.0,)), ValueRange((0.0,), (1000.0,)))
    quantiles = NormStats.from_episodes(episodes, method="quantiles", use_state=False, name="demos")
    assert quantiles == NormStats(ValueRange((1.0,), (99.0,)), None)


def test_nan_and_missing_states_are_refused() -> None:
    with pytest.raises(DataError, match=r"demos: actions: NaN or infinite values in dimension \[0\], the first in ep"):
        NormStats.from_episodes(episodes_of(1, math.nan), method="minmax", use_state=False, name="demos")
    with pytest.raises(DataError, match=r"demos: episode 0 has no state; set data\.use_state: false"):
        NormStats.from_episodes(episodes_of(1, states=False), method="minmax", use_state=True, name="demos")


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), st.booleans())
def test_they_come_back_from_json_to_the_last_bit(values: list[float], use_state: bool) -> None:
    stats = NormStats.from_episodes(episodes_of(*values), method="quantiles", use_state=use_state, name="demos")
    again = NormStats.from_json(json.loads(json.dumps(stats.to_json())))
    assert again == stats
    assert again.digest() == stats.digest()


def test_the_digest_tells_the_smallest_difference() -> None:
    one, other = (NormStats(ValueRange((0.0,), (high,)), None) for high in (1.0, math.nextafter(1.0, 2)))
    assert len({one.digest(), other.digest(), NormStats(other.actions, other.actions).digest()}) == 3


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"actions": None, "states": None},
        {"actions": {"low": [2], "high": [1]}, "states": None},
        {"actions": 3, "states": 3},
        {"actions": {"low": ["x"], "high": [1]}, "states": None},
    ],
)
def test_damaged_ones_are_one_line(content: dict) -> None:
    with pytest.raises(DataError, match=r"normalisation statistics: .*; restore the file"):
        NormStats.from_json(content)

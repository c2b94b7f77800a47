"""Statistics in one pass: the same as NumPy's over all values, in whatever order and pieces they come."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.data import value_counts
from vlatrack.data.episode_statistics import QUANTILES, EpisodeStatistics
from vlatrack.data.episodes import Episode
from vlatrack.data.statistics import NormStats
from vlatrack.data.value_counts import ValueCounts
from vlatrack.errors import DataError


@pytest.fixture
def few_keys(monkeypatch) -> None:
    """So few that some thousand values have to share them."""
    monkeypatch.setattr(value_counts, "MOST_KEYS", 256)


def demonstrations(number: int = 40, *, seed: int = 0) -> list[Episode]:
    generator, episodes = np.random.default_rng(seed), []
    for index in range(number):
        length = int(generator.integers(20, 200))
        actions = generator.normal(0, [1, 1e-3, 100], (length, 3))
        actions[:, 2] = np.where(actions[:, 2] > 0, 1, -1)
        episodes.append(Episode(index, "push", actions.astype(np.float32), (actions[:, :2] * 7).astype(np.float32)))
    return episodes


def stacked(episodes: Sequence[Episode]) -> np.ndarray:
    return np.concatenate([episode.actions for episode in episodes]).astype(np.float64)


def ranges_of(episodes: Sequence[Episode], **settings: object) -> NormStats:
    return NormStats.from_episodes(episodes, method="quantiles", use_state=True, name="demos", **settings)


def test_ranges_equal_numpys_to_the_last_bit() -> None:
    episodes = demonstrations()
    low, high = np.quantile(stacked(episodes), [0.01, 0.99], axis=0)
    found = ranges_of(episodes).actions
    assert (found.low, found.high) == (tuple(low.tolist()), tuple(high.tolist()))


@pytest.mark.usefixtures("few_keys")
def test_quantiles_stay_exact_where_values_share_keys_by_a_second_pass() -> None:
    episodes = demonstrations()
    statistics = EpisodeStatistics.of(episodes)
    assert not statistics.actions[0].counts.is_exact
    assert statistics.actions[2].counts.is_exact, "a gripper has two values"
    low, high = np.quantile(stacked(episodes), [0.01, 0.99], axis=0)
    found = ranges_of(episodes, statistics=statistics).actions
    assert (found.low, found.high) == (tuple(low.tolist()), tuple(high.tolist()))


@pytest.mark.usefixtures("few_keys")
def test_memory_is_bounded_and_so_is_the_error() -> None:
    episodes = demonstrations(200)
    found = EpisodeStatistics.of(episodes).actions
    values = stacked(episodes)
    for dimension, of in enumerate(found):
        assert len(of.counts.keys) <= 256
        assert of.count == len(values)
        assert (of.low, of.high) == (values[:, dimension].min(), values[:, dimension].max())
        assert of.mean == pytest.approx(values[:, dimension].mean())
        assert of.std == pytest.approx(values[:, dimension].std())
        bound = 2.0 ** (of.counts.dropped - 24)
        exact = np.quantile(values[:, dimension], QUANTILES)
        np.testing.assert_allclose(of.quantiles(), exact, rtol=bound, atol=bound * of.std)


@pytest.mark.usefixtures("few_keys")
def test_workers_add_up_to_the_same_counts_in_any_order() -> None:
    episodes = demonstrations(30)
    whole = EpisodeStatistics.of(episodes)
    parts = [EpisodeStatistics.of(episodes[start::7]) for start in range(7)]
    total = parts[3]
    for number in (6, 0, 1, 5, 4, 2):
        total = parts[number] + total
    assert total.episodes == whole.episodes
    for one, other in zip((*total.actions, *total.states), (*whole.actions, *whole.states), strict=True):
        assert one.counts.to_json() == other.counts.to_json()
        assert (one.low, one.high) == (other.low, other.high)
        assert one.squares == pytest.approx(other.squares)


def test_an_episode_longer_than_the_buffer_is_counted_whole() -> None:
    values = np.arange(200_001, dtype=np.float32)[:, None]
    found = EpisodeStatistics.of([Episode(0, "push", values[:3], None), Episode(1, "push", values, None)]).actions[0]
    assert (found.count, found.low, found.high) == (200_004, 0, 200_000)
    assert found.quantiles([0.5])[0] == pytest.approx(100_000, rel=1e-4)


def test_nan_and_infinity_are_told_with_the_first_episode_and_counted_nowhere_else() -> None:
    episodes = demonstrations(6)
    episodes[4].actions[3, 1] = np.nan
    episodes[2].actions[5, 1] = -np.inf
    found = EpisodeStatistics.of(episodes[3:]) + EpisodeStatistics.of(episodes[:3])
    assert (found.actions[1].not_finite, found.actions[1].not_finite_in) == (2, 2)
    assert found.actions[1].count == found.actions[0].count - 2
    with pytest.raises(DataError, match=r"actions: NaN or infinite values in dimension \[1\], the first in episode 2"):
        ranges_of(episodes)


def test_dimensions_that_stay_as_they_are_go_from_minus_one_to_one() -> None:
    found = ranges_of(demonstrations(), action_as_is=[1], state_as_is=[0])
    assert (found.actions.low[1], found.actions.high[1]) == (-1, 1)
    assert found.states is not None
    assert (found.states.low[0], found.states.high[0]) == (-1, 1)
    assert found.actions.high[0] > 1
    with pytest.raises(DataError, match=r"dimension 3 is to stay as it is, the last is 2; count them from 0"):
        ranges_of(demonstrations(), action_as_is=[3])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_counts_have_every_value_in_its_order(values: list[float]) -> None:
    counts = ValueCounts.of(np.array(values, np.float32))
    assert np.repeat(counts.values(), counts.counts).tolist() == sorted(values)
    assert counts.at(range(len(values))).tolist() == sorted(values)


@pytest.mark.usefixtures("few_keys")
def test_statistics_come_back_from_json() -> None:
    statistics = EpisodeStatistics.of(demonstrations())
    again = EpisodeStatistics.from_json(json.loads(json.dumps(statistics.to_json())))
    assert again.to_json() == statistics.to_json()
    assert again.actions[0].quantiles() == statistics.actions[0].quantiles()


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 3},
        {"dropped": 40},
        {"number": 1 << 30},
        {"content": "AAAA"},
        {"content": "eJw="},
        {"content": None},
        {"dropped": 31},
    ],
)
def test_damaged_counts_are_refused(changes: dict) -> None:
    stored = EpisodeStatistics.of(demonstrations(2)).to_json()
    stored["actions"][0]["counts"] |= changes
    with pytest.raises(DataError, match=r"statistics: damaged .*; remove the file"):
        EpisodeStatistics.from_json(stored)

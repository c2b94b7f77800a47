"""Intervals and tests of success rates, against SciPy's own, published values and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from vlatrack.evaluation.intervals import clopper_pearson, episodes_needed, holm, mcnemar, newcombe_paired, wilson
from vlatrack.evaluation.sequential import evidence_above, evidence_below, evidence_of_difference

COUNTS = [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (482, 500)]


@pytest.mark.parametrize(("successes", "episodes"), COUNTS)
def test_intervals_of_a_rate_are_those_of_scipy(successes: int, episodes: int) -> None:
    known = stats.binomtest(successes, episodes)
    for method, interval in (("wilson", wilson), ("exact", clopper_pearson)):
        assert interval(successes, episodes) == pytest.approx(tuple(known.proportion_ci(method=method)), abs=1e-12)


def test_without_episodes_every_rate_is_possible() -> None:
    assert wilson(0, 0) == clopper_pearson(0, 0) == (0, 1)
    assert newcombe_paired(0, 0, 0, 0) == (-1, 1)


def test_the_paired_interval_is_that_of_newcombes_example() -> None:
    """Table II of the paper, method 10: 36, 12, 2 and 0 pairs."""
    assert newcombe_paired(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("table", [(40, 5, 3, 2), (0, 4, 9, 30), (10, 0, 0, 10), (0, 10, 10, 0), (50, 0, 0, 0)])
def test_the_paired_interval_holds_the_difference_and_turns_with_the_policies(table: tuple[int, ...]) -> None:
    both, only_a, only_b, neither = table
    low, high = newcombe_paired(both, only_a, only_b, neither)
    assert -1 <= low <= (only_a - only_b) / sum(table) <= high <= 1
    assert newcombe_paired(both, only_b, only_a, neither) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (9, 1), (3, 30)])
def test_mcnemars_test_is_the_exact_binomial_test_of_the_pairs_that_differ(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_holms_correction_multiplies_the_smallest_p_value_most_and_keeps_their_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("a", "b", "episodes"), [(0.9, 0.95, 432), (0.94, 0.96, 1861), (0.8, 0.9, 197), (0.5, 0.5, None)]
)
def test_a_difference_needs_as_many_episodes_as_the_normal_approximation_says(a, b, episodes) -> None:
    assert episodes_needed(a, b) == episodes


def differences(a: float, b: float, *, pairs: int = 500, times: int = 2000) -> np.ndarray:
    """Independent outcomes of two policies with these success rates."""
    generator = np.random.default_rng(0)
    return (generator.random((times, pairs)) < a).astype(int) - (generator.random((times, pairs)) < b).astype(int)


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_looking_after_every_pair_raises_no_more_false_alarms_than_were_allowed(rate: float) -> None:
    simulated = differences(rate, rate)
    alarms = [evidence_of_difference(pairs).max() >= 20 for pairs in simulated]
    either = [max(evidence_above(pairs, 0).max(), evidence_below(pairs, 0).max()) >= 40 for pairs in simulated]
    peeked = [any(_mcnemar_alarm(pairs[:stop]) for stop in range(10, 501, 10)) for pairs in simulated[:200]]
    assert 0 < np.mean(alarms) <= 0.05
    assert 0 < np.mean(either) <= 0.05
    assert np.mean(peeked) > 0.12  # what the e-process is for


def _mcnemar_alarm(pairs: np.ndarray) -> bool:
    return mcnemar(int((pairs == 1).sum()), int((pairs == -1).sum())) < 0.05


def test_a_policy_at_the_margin_passes_as_seldom_as_was_allowed() -> None:
    at_the_margin = [evidence_above(pairs, -0.05).max() >= 40 for pairs in differences(0.8, 0.85)]
    assert np.mean(at_the_margin) <= 0.025


def test_a_clear_difference_is_found_early() -> None:
    reached = [np.flatnonzero(evidence_of_difference(pairs) >= 20) for pairs in differences(0.96, 0.9)]
    assert 0.75 < np.mean([len(at) > 0 for at in reached]) < 0.85
    assert 270 < np.mean([at[0] + 1 if len(at) else 500 for at in reached]) < 300


def test_the_e_value_depends_on_the_wins_alone() -> None:
    orders = [evidence_of_difference(order)[-1] for order in itertools.permutations([1, 1, -1, 0])]
    assert orders == pytest.approx([orders[0]] * len(orders))
    assert evidence_of_difference([1] * 8)[-1] == pytest.approx(2**8 * stats.beta(0.5, 0.5).moment(8))

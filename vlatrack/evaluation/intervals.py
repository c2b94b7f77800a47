"""Intervals and tests for success rates: of one policy, and of two on the same episodes.

All are two-sided, of the given confidence, and are fractions.
"""

import math

from scipy.special import bdtr, betaincinv, ndtri  # scipy.stats takes far longer to import

Interval = tuple[float, float]
CONFIDENCE = 0.95


def wilson(successes: int, episodes: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval (1927) of a success rate; [0, 1] without episodes."""
    if episodes == 0:
        return 0.0, 1.0
    z, rate = _quantile(confidence), successes / episodes
    centre = rate + z * z / (2 * episodes)
    half = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    # At the borders the terms cancel, but for their rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == episodes else (centre + half) / scale
    return low, high


def clopper_pearson(successes: int, episodes: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval of Clopper and Pearson (1934), from quantiles of the beta distribution."""
    alpha, failures = 1 - confidence, episodes - successes
    low = 0.0 if successes == 0 else float(betaincinv(successes, failures + 1, alpha / 2))
    high = 1.0 if failures == 0 else float(betaincinv(successes + 1, failures, 1 - alpha / 2))
    return low, high


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the difference of two success rates on the same episodes: method 10 of Newcombe (1998), "Improved
    confidence intervals for the difference between binomial proportions based on paired data".

    Args:
        both, only_a, only_b, neither: the episodes in which so many of the two succeeded.

    Returns:
        The interval of A's rate minus B's, in [-1, 1]; the whole of it without episodes.
    """
    episodes = both + only_a + only_b + neither
    if episodes == 0:
        return -1.0, 1.0
    rate_a, rate_b = (both + only_a) / episodes, (both + only_b) / episodes
    low_a, high_a = wilson(both + only_a, episodes, confidence)
    low_b, high_b = wilson(both + only_b, episodes, confidence)
    phi = _corrected_phi(both, only_a, only_b, neither)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (only_a - only_b) / episodes
    low = difference - reach(rate_a - low_a, high_b - rate_b)
    high = difference + reach(high_a - rate_a, rate_b - low_b)
    return low, high


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's test, exact and two-sided. It holds for one look at a number of episodes that was fixed
    beforehand."""
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: list[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of several comparisons, in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def episodes_needed(rate_a: float, rate_b: float, *, power: float = 0.8, confidence: float = CONFIDENCE) -> int | None:
    """Episodes of each policy that find such a difference with this probability, if each policy has episodes of its
    own; None for equal rates. Pairs on the same episodes need fewer, as far as their outcomes go together."""
    if rate_a == rate_b:
        return None
    variance = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    reach = _quantile(confidence) + float(ndtri(power))
    return max(1, math.ceil(reach * reach * variance / (rate_a - rate_b) ** 2))


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Newcombe's correlation of the outcomes, with his correction of continuity where it is positive."""
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if sides == 0:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - (both + only_a + only_b + neither) / 2, 0.0)
    return product / math.sqrt(sides)


def _quantile(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))

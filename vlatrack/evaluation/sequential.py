"""Evidence that may be looked at after every pair of episodes, and stopped when there is enough: e-processes.

If the hypothesis holds, the e-value ever reaches 1 / alpha with a probability of at most alpha (Ville's inequality),
however often one looks; so looking early costs nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

ALPHA = 0.05
_BETS = 32
"""Bets that a test of a margin holds at once."""


def evidence_of_difference(differences: Sequence[int]) -> NDArray[np.float64]:
    """E-values against "both policies succeed equally often", after each pair.

    Of the pairs in which one alone succeeds, each policy then wins half. Against it stands a mixture of all other
    shares, weighted by Jeffreys' prior: e = B(a + 1/2, b + 1/2) / B(1/2, 1/2) * 2^(a + b) for wins a and b.

    Args:
        differences: of each pair: 1 if only A succeeded, -1 if only B did, else 0.
    """
    values = np.asarray(differences)
    wins_a, wins_b = np.cumsum(values == 1), np.cumsum(values == -1)
    logarithm = betaln(wins_a + 0.5, wins_b + 0.5) - betaln(0.5, 0.5) + (wins_a + wins_b) * np.log(2)
    return np.exp(logarithm)


def evidence_above(differences: Sequence[int], limit: float) -> NDArray[np.float64]:
    """E-values against "A's rate minus B's is at most ``limit``", after each pair; ``limit`` lies in (-1, 1).

    The wealth of one who bets on each pair that its difference is above the limit, with several stakes at once, evenly:
    under the hypothesis no such game can be expected to win.
    """
    values = np.asarray(differences)
    gains = values[:, None] - limit
    stakes = (np.arange(_BETS) + 0.5) / _BETS / (1 + limit)  # the largest could lose everything in a pair that B wins
    wealth = np.cumsum(np.log1p(stakes * gains), axis=0)
    highest = wealth.max(axis=1, keepdims=True) if len(values) else wealth
    evidence: NDArray[np.float64] = np.exp(highest[:, 0]) * np.exp(wealth - highest).mean(axis=1)
    return evidence


def evidence_below(differences: Sequence[int], limit: float) -> NDArray[np.float64]:
    """E-values against "A's rate minus B's is at least ``limit``", after each pair."""
    return evidence_above([-value for value in differences], -limit)

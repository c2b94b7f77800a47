"""What the ranges of a tokenizer cost: how far values are from what their tokens say, by clipping and by rounding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episode_statistics import ValueStatistics
from vlatrack.data.statistics import NormStats
from vlatrack.data.value_counts import ValueCounts
from vlatrack.tokens.bins import Bins, ValueRange, decode_ids


@dataclass(frozen=True)
class RangeCost:
    """Of one dimension, over all steps; distances in units of [-1, 1], as those of `l1_loss_action`."""

    clipped: float  # share of the values that lie outside the range
    clipping: float  # mean L1 that is lost by clipping them to it
    floor: float  # mean L1 between what is then left and the centres of the bins: as `quantisation_floor`


@dataclass(frozen=True)
class TokenCosts:
    """Of actions and states, a cost for each dimension."""

    actions: tuple[RangeCost, ...]
    states: tuple[RangeCost, ...]  # empty: the policy does not see the state

    def line(self) -> str:
        """One line for the start of a run."""
        parts = [f"{name} {_mean_text(costs)}" for name, costs in self._named() if costs]
        return f"what the tokens cost, mean L1 in units of [-1, 1]: {'; '.join(parts)}"

    def _named(self) -> tuple[tuple[str, tuple[RangeCost, ...]], ...]:
        return ("actions", self.actions), ("states", self.states)


def range_costs(found: Sequence[ValueStatistics], ranges: ValueRange, bins: Bins) -> tuple[RangeCost, ...]:
    """Of each dimension; exact as far as the counts of its values are."""
    return tuple(
        _cost(of.counts, ValueRange((low,), (high,)), bins)
        for of, low, high in zip(found, ranges.low, ranges.high, strict=True)
    )


def token_costs(
    actions: Sequence[ValueStatistics], states: Sequence[ValueStatistics], norm_stats: NormStats, bins: Bins
) -> TokenCosts:
    """Of the ranges of a policy on the episodes that these are the statistics of."""
    of_states = () if norm_stats.states is None else range_costs(states, norm_stats.states, bins)
    return TokenCosts(range_costs(actions, norm_stats.actions, bins), of_states)


def _cost(counts: ValueCounts, only: ValueRange, bins: Bins) -> RangeCost:
    if not counts.total:
        return RangeCost(0.0, 0.0, 0.0)
    values, weights = counts.values()[:, None], counts.counts
    (low,), (high,) = only.low, only.high
    clipped = only.normalise(values)
    beyond = np.abs(2 * (values - low) / (high - low + 1e-8) - 1) - 1
    decoded = decode_ids(bins.encode(clipped, start=0), bins.centres, start=0)
    return RangeCost(
        clipped=_mean((values < low) | (values > high), weights),
        clipping=_mean(np.maximum(beyond, 0), weights),
        floor=_mean(np.abs(decoded - clipped), weights),
    )


def _mean(values: NDArray[Any], weights: NDArray[np.int64]) -> float:
    return float(np.average(values[:, 0], weights=weights))


def _mean_text(costs: Sequence[RangeCost]) -> str:
    floor, clipping = (float(np.mean([getattr(cost, name) for cost in costs])) for name in ("floor", "clipping"))
    worst = max(range(len(costs)), key=lambda d: costs[d].clipped)
    share = f", {costs[worst].clipped:.1%} of dimension {worst} clipped" if costs[worst].clipped else ""
    return f"{floor:.2g} by bins, {clipping:.2g} by clipping{share}"

"""Normalisation statistics: the ranges of actions and states that become [-1, 1], from the training episodes."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episode_statistics import EpisodeStatistics, ValueStatistics
from vlatrack.data.episodes import Episode
from vlatrack.data.value_counts import exact_values, interpolated, quantile_ranks
from vlatrack.errors import DataError, TokenError
from vlatrack.tokens.bins import ValueRange

_OUTER = (0.01, 0.99)

Method = Literal["minmax", "quantiles"]
Arrays = Iterable[NDArray[np.float32]]


@dataclass(frozen=True)
class NormStats:
    """The ranges that actions and states are normalised by; whoever acts or evaluates needs those of the training."""

    actions: ValueRange  # A dimensions
    states: ValueRange | None  # N dimensions; None: the policy does not see the state

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        *,
        method: Method,
        use_state: bool,
        name: str,
        action_as_is: Collection[int] = (),
        state_as_is: Collection[int] = (),
        statistics: EpisodeStatistics | None = None,
    ) -> Self:
        """Computed from the training episodes, at least one.

        Args:
            method: extremes, or the 1 % and 99 % quantiles, of each dimension.
            use_state: whether the policy sees the state.
            name: the dataset's, for messages.
            action_as_is, state_as_is: dimensions that stay as they are: their range is [-1, 1].
            statistics: those of these episodes, if they are known: the episodes are read only if quantiles need it.

        Raises:
            DataError: an episode lacks the state, a value is NaN or infinite, or there is no such dimension.
        """
        found = statistics or EpisodeStatistics.of(episodes)
        actions = _range_of(
            f"{name}: actions", found.actions, method, action_as_is, lambda: (e.actions for e in episodes)
        )
        if not use_state:
            return cls(actions, None)
        if found.without_state is not None:
            raise DataError(f"{name}: episode {found.without_state} has no state; set data.use_state: false")
        states = _range_of(
            f"{name}: states",
            found.states,
            method,
            state_as_is,
            lambda: (e.states for e in episodes if e.states is not None),
        )
        return cls(actions, states)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives back equal statistics, to the last bit."""
        return {
            name: None if found is None else {"low": list(found.low), "high": list(found.high)}
            for name, found in (("actions", self.actions), ("states", self.states))
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; DataError, one line, for anything else."""
        try:
            actions, states = (
                None if found is None else ValueRange(tuple(map(float, found["low"])), tuple(map(float, found["high"])))
                for found in (content["actions"], content["states"])
            )
        except (KeyError, TypeError, ValueError, TokenError) as error:
            raise DataError(f"normalisation statistics: damaged ({error}); restore the file") from None
        if actions is None:
            raise DataError("normalisation statistics: the range of the actions is missing; restore the file")
        return cls(actions, states)

    def digest(self) -> str:
        """SHA-256 (hex): equal for equal statistics."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _range_of(
    what: str,
    found: Sequence[ValueStatistics],
    method: Method,
    as_is: Collection[int],
    arrays: Callable[[], Arrays],
) -> ValueRange:
    if bad := [dimension for dimension, of in enumerate(found) if of.not_finite]:
        first = min(of.not_finite_in for of in found if of.not_finite_in is not None)
        raise DataError(
            f"{what}: NaN or infinite values in dimension {bad}, the first in episode {first}; leave those episodes out"
        )
    if unknown := [dimension for dimension in as_is if dimension >= len(found)]:
        raise DataError(
            f"{what}: tokenizer.statistics: dimension {unknown[0]} is to stay as it is, the last is {len(found) - 1}; "
            "count them from 0"
        )
    if method == "minmax":
        low, high = [of.low for of in found], [of.high for of in found]
    else:
        ranks, fractions = quantile_ranks(found[0].count, _OUTER)
        values = exact_values([of.counts for of in found], ranks, arrays())
        low, high = np.stack([interpolated(column, fractions) for column in values.T], axis=1).tolist()
    for dimension in as_is:
        low[dimension], high[dimension] = -1.0, 1.0
    return ValueRange(tuple(low), tuple(high))

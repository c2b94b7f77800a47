"""Normalisation statistics: the ranges of actions and states that become [-1, 1], from the training episodes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode
from vlatrack.errors import DataError, TokenError
from vlatrack.tokens.bins import ValueRange

_QUANTILES = (0.01, 0.99)

Method = Literal["minmax", "quantiles"]


@dataclass(frozen=True)
class NormStats:
    """The ranges that actions and states are normalised by; whoever acts or evaluates needs those of the training."""

    actions: ValueRange  # A dimensions
    states: ValueRange | None  # N dimensions; None: the policy does not see the state

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], *, method: Method, use_state: bool, name: str) -> Self:
        """Computed from the training episodes, at least one.

        Args:
            method: extremes, or the 1 % and 99 % quantiles, of each dimension.
            use_state: whether the policy sees the state.
            name: the dataset's, for messages.

        Raises:
            DataError: an episode lacks the state, or a value is NaN or infinite.
        """
        actions = _range_of(f"{name}: actions", [episode.actions for episode in episodes], method)
        if not use_state:
            return cls(actions, None)
        states = []
        for episode in episodes:
            if episode.states is None:
                raise DataError(f"{name}: episode {episode.index} has no state; set data.use_state: false")
            states.append(episode.states)
        return cls(actions, _range_of(f"{name}: states", states, method))

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


def value_range(values: Sequence[NDArray[np.float32]], how: Method) -> ValueRange:
    """Low and high of each dimension over arrays [T, A]: extremes, or the 1 % and 99 % quantiles.

    Raises:
        DataError: a value is NaN or infinite.
    """
    return _range_of("the training data", values, how)


def _range_of(what: str, values: Sequence[NDArray[np.float32]], method: Method) -> ValueRange:
    stacked = np.concatenate(values).astype(np.float64)
    if not np.isfinite(stacked).all():
        where = sorted(set(np.nonzero(~np.isfinite(stacked))[1].tolist()))
        raise DataError(f"{what}: NaN or infinite values in dimension {where}; leave those episodes out")
    low, high = (
        (stacked.min(axis=0), stacked.max(axis=0)) if method == "minmax" else np.quantile(stacked, _QUANTILES, axis=0)
    )
    return ValueRange(tuple(low.tolist()), tuple(high.tolist()))

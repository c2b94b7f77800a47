"""Are the statistics that a dataset tells of itself those of its values?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.finding import Finding, plural, some
from vlatrack.data.episode_statistics import ValueStatistics

TOLD = ("min", "max", "mean", "std")
"""Of all that datasets tell, what does not depend on how it is computed: quantiles are often means over episodes."""
_ROUNDING = 1e-3
"""Of the range of the values; sums in float32 are off by less."""

Kind = Literal["action", "state"]


@dataclass(frozen=True)
class ToldStatistics:
    """What a file of a dataset says of its actions or states: for each name of `TOLD`, [D]."""

    file: str
    values: Mapping[str, NDArray[np.float64]]


@runtime_checkable
class TellsStatistics(Protocol):
    """A dataset with statistics of its own; a part of it."""

    def told_statistics(self) -> Mapping[Kind, ToldStatistics]:
        """Of actions and states, as far as it has them; raises DataError for a damaged file."""


def check_told(where: str, kind: Kind, found: Sequence[ValueStatistics], told: ToldStatistics) -> Iterator[Finding]:
    """Where what is told differs from the values by more than rounding.

    Args:
        where: the dataset, for messages.
        found: statistics of all of its values.
    """
    remedy = "compute them anew: whoever trains by them normalises otherwise (vlatrack computes its own)"
    sizes = {len(values) for values in told.values.values()}
    if sizes != {len(found)}:
        message = f"{told.file} has {some(sorted(sizes))} numbers of each {kind}, of which there are {len(found)}"
        yield Finding("warning", "statistics", where, message, remedy)
        return
    wrong = []
    for dimension, of in enumerate(found):
        if not of.count:
            continue
        own = (of.low, of.high, of.mean, of.std)
        most = _ROUNDING * max(of.high - of.low, 1e-3 * max(abs(of.low), abs(of.high)))
        for name, value in zip(TOLD, own, strict=True):
            said = float(told.values[name][dimension])
            if not abs(said - value) <= most:  # NaN included
                wrong.append(f"{name} of {kind} {dimension} is {value:.6g}, not {said:.6g}")
    if wrong:
        message = f"{plural(len(wrong), 'value')} of {told.file} not as in the data: {some(wrong)}"
        yield Finding("warning", "statistics", where, message, remedy, len(wrong))

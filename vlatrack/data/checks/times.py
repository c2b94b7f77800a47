"""Do the steps of an episode come as fast as the dataset says?"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.finding import Finding, episodes_place, plural, some

_TOLERANCE = 0.05
"""Of the time between two steps, by which that of an episode may differ."""
_GAP = 1.5
"""So many times the time between two steps, and a step is missing."""

Times = Iterable[tuple[int, NDArray[np.float64]]]


@runtime_checkable
class KnowsTimes(Protocol):
    """A dataset that has recorded when each step was; a part of it."""

    def step_times(self) -> Times:
        """The number of each episode, and the seconds of its steps, [T]."""


def check_times(where: str, fps: float, times: Times) -> Iterator[Finding]:
    """Episodes that were recorded at another rate, or of which steps are missing or in disorder.

    Args:
        where: the dataset, for messages.
        fps: steps in a second, as it says.
    """
    wrong: dict[int, float] = {}
    gaps: dict[int, int] = {}
    disorder: list[int] = []
    for episode, seconds in times:
        apart = np.diff(seconds)
        if np.isfinite(seconds[:1]).all() and (np.abs(apart * fps - 1) <= _TOLERANCE).all():
            continue  # nearly all episodes, without a look at their medians
        if not np.isfinite(seconds).all() or (apart <= 0).any():
            disorder.append(episode)
        elif abs(float(np.median(apart)) * fps - 1) > _TOLERANCE:
            wrong[episode] = 1 / float(np.median(apart))
        elif number := int((apart * fps > _GAP).sum()):
            gaps[episode] = number
    if wrong:
        rates = some(sorted({f"{rate:.3g}" for rate in wrong.values()}))
        message = f"{plural(len(wrong), 'episode')} with {rates} steps a second by the timestamps, not {fps:g}"
        remedy = "correct fps, or the timestamps: chunks and video frames are taken by them"
        yield Finding("error", "fps", episodes_place(where, list(wrong)), message, remedy, len(wrong))
    if disorder:
        message = f"{plural(len(disorder), 'episode')} with timestamps that do not grow from step to step"
        remedy = "put the steps in order, or leave these episodes out"
        yield Finding("error", "timestamps", episodes_place(where, disorder), message, remedy, len(disorder))
    if gaps:
        message = f"{plural(len(gaps), 'episode')} with {plural(sum(gaps.values()), 'gap')} of more than {_GAP:g} steps"
        remedy = "an action then stands for several steps: leave them out if there are many"
        yield Finding("warning", "timestamps", episodes_place(where, list(gaps)), message, remedy, len(gaps))

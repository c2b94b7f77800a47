"""What an L1 error is worth: the errors of two policies that see nothing.

`constant` always acts as the median of the training actions does in each dimension, the constant with the smallest L1
error; `repeat` repeats the last action before the chunk. Where a robot moves slowly, repeating is hard to beat.

Legend: T steps of an episode, H steps of a chunk, A numbers of an action, normalised to [-1, 1].
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CONSTANT, REPEAT = "constant", "repeat"
Actions = NDArray[np.float32]
"""[T, A] of one episode."""


def median_action(episodes: Sequence[Actions]) -> Actions:
    """[A] the median of each dimension over all steps of at least one episode."""
    median: Actions = np.median(np.concatenate(episodes), axis=0).astype(np.float32)
    return median


def baseline_errors(
    episodes: Sequence[Actions], constant: Actions, *, horizon: int, every: int = 1
) -> Mapping[str, list[list[float]]]:
    """The mean L1 error of each chunk step and dimension, [H][A], by baseline.

    Chunks begin at every n-th step, as training samples do; the first one of an episode has no action before it, and
    is left out of `repeat`. A baseline without a chunk is left out.
    """
    errors: dict[str, list[NDArray[np.float32]]] = {CONSTANT: [], REPEAT: []}
    for actions in episodes:
        for start in range(0, len(actions) - horizon + 1, every):
            chunk = actions[start : start + horizon]
            errors[CONSTANT].append(np.abs(chunk - constant))
            if start:
                errors[REPEAT].append(np.abs(chunk - actions[start - 1]))
    means = {name: np.stack(found).mean(axis=0, dtype=np.float64) for name, found in errors.items() if found}
    return {name: [[float(error) for error in row] for row in mean] for name, mean in means.items()}

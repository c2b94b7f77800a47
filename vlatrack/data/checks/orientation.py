"""How images are turned, compared with a simulator's own rendering of the same scene."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.checks.finding import Finding

Turn = Literal["upright", "upside down", "turned by 180 degrees", "mirrored"]
TURNS: Mapping[Turn, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "upright": lambda image: image,
    "upside down": lambda image: image[::-1],
    "turned by 180 degrees": lambda image: image[::-1, ::-1],
    "mirrored": lambda image: image[:, ::-1],
}
"""What was done to an upright image; each undoes itself."""

_SIDE = 32
_MARGIN = 0.05
_SURE = 0.4


@dataclass(frozen=True)
class Orientation:
    """Which way a camera's images are turned."""

    turn: Turn
    correlations: Mapping[Turn, float]  # -1 to 1, of the recorded image turned back and the rendered one

    @property
    def is_sure(self) -> bool:
        """Whether the images show the rendered scene, and one way clearly more than the others."""
        best, second = sorted(self.correlations.values(), reverse=True)[:2]
        return best >= _SURE and best - second >= _MARGIN


def orientation(recorded: Sequence[NDArray[np.uint8]], rendered: NDArray[np.uint8]) -> Orientation:
    """Compare images of one camera with one that the simulator renders upright.

    Objects may lie elsewhere and the resolution may differ: small grey images are compared, [32, 32] each.

    Args:
        recorded: at least one, [height, width, 3] each.
    """
    expected = _normalised(rendered)
    found: dict[Turn, float] = {
        name: float(np.mean([np.sum(_normalised(turned(image)) * expected) for image in recorded]))
        for name, turned in TURNS.items()
    }
    return Orientation(max(found, key=lambda name: found[name]), found)


def check_orientation(where: str, seen: Orientation, expected: Turn | None) -> Iterator[Finding]:
    """Whether the images of a camera are turned as an evaluation in the simulator will turn them.

    Args:
        where: dataset, camera and task, for messages.
        expected: how they are, as the experiment says; None: it says nothing.
    """
    best = seen.correlations[seen.turn]
    if not seen.is_sure:
        message = f"first images do not look like what the simulator renders, however turned (correlation {best:.2f})"
        yield Finding("warning", "orientation", where, message, "look at them: vlatrack data info --pictures")
    elif expected is not None and seen.turn != expected:
        message = f"images are {seen.turn}, by data.recorded.rotation they are {expected} (correlation {best:.2f})"
        remedy = "correct data.recorded.rotation: an evaluation in the simulator would show other images"
        yield Finding("error", "orientation", where, message, remedy)
    elif expected is None and seen.turn != "upright":
        message = f"images are {seen.turn}, compared with the upright scene (correlation {best:.2f})"
        remedy = "if that is meant, say so in data.recorded.rotation, so that evaluations show the same"
        yield Finding("warning", "orientation", where, message, remedy)


def _normalised(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A small grey image of mean 0 and length 1; of one without any contrast, zeros."""
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, np.float64)
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length else values

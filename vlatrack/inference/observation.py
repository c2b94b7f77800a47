"""What a policy sees at one moment, and what it was trained to see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.deltas import Deltas
from vlatrack.data.recorded import Recorded
from vlatrack.errors import DataError, ObservationError, SpecError


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one moment, in the units of the training data."""

    images: Mapping[str, NDArray[np.uint8]]
    """RGB, [height, width, 3], by the name of the camera in the training data; cameras that the policy does not use may
    be among them. Images of another size are resized."""
    instruction: str
    state: NDArray[np.floating[Any]] | None = None
    """Proprioceptive, [N]; None for a policy without a state."""


@dataclass(frozen=True)
class Interface:
    """What a policy wants to see, and the shape of what it answers."""

    cameras: tuple[str, ...]
    state_dim: int | None  # numbers of the proprioceptive state; None: it has none
    history: int  # moments whose images it sees, the present one included
    horizon: int  # actions of a chunk
    action_dim: int
    repeats_start: bool = True  # before an episode's first step its images stand for earlier ones; else there are fewer
    statistics: str | None = None  # SHA-256 of what actions and states are normalised by; None: not known
    recorded: Recorded = field(default_factory=Recorded)  # how its training data were made
    deltas: Deltas | None = None  # the seconds of the moments; None: they are consecutive env steps

    def steps_back(self, fps: float | None) -> tuple[int, ...]:
        """How many env steps before the present one each moment is, the oldest first.

        Args:
            fps: env steps in a second; None: not known.

        Raises:
            SpecError: that is needed and not known, or no env step is at one of the moments.
        """
        if self.deltas is None:
            return tuple(range(self.history - 1, -1, -1))
        if fps is None:
            moments = ", ".join(f"{delta:g}" for delta in self.deltas.seconds)
            raise SpecError(f"fps: the policy sees images at {moments} s; give the env steps in a second")
        try:
            return self.deltas.steps_back(fps, place="the environment")
        except DataError as error:
            raise SpecError(str(error)) from None

    def check(self, observation: Observation) -> None:
        """Raise ObservationError, one line with the remedy, for what the policy was not trained on."""
        if not isinstance(observation.instruction, str) or not observation.instruction.strip():
            raise ObservationError("observation: has no instruction; give the task as text")
        missing = [camera for camera in self.cameras if camera not in observation.images]
        if missing:
            there = ", ".join(observation.images) or "none"
            raise ObservationError(
                f"observation: lacks the image of {', '.join(missing)}; the policy sees {', '.join(self.cameras)}, "
                f"the observation has {there}"
            )
        for camera in self.cameras:
            _check_image(camera, observation.images[camera])
        self._check_state(observation.state)

    def _check_state(self, state: Any) -> None:
        if self.state_dim is None:
            if state is not None:
                raise ObservationError("observation: has a state, but the policy was trained without; leave it out")
            return
        if state is None:
            raise ObservationError(f"observation: lacks the proprioceptive state, {self.state_dim} numbers")
        values = np.asarray(state)
        if values.shape != (self.state_dim,) or values.dtype.kind not in "fiu":
            raise ObservationError(
                f"observation: the state is {values.dtype} {list(values.shape)}; expected {self.state_dim} numbers"
            )
        if not np.isfinite(values).all():
            raise ObservationError("observation: the state holds NaN or infinity")


def _check_image(camera: str, image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ObservationError(
            f"observation: the image of {camera} is {found}; expected an RGB array, uint8 [height, width, 3]"
        )
    if not image.size:
        raise ObservationError(f"observation: the image of {camera} is empty")

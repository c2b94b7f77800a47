"""Which entry of a request is which part of an observation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import ObservationError, ServingError, SpecError
from vlatrack.inference.observation import Interface, Observation
from vlatrack.serving.pictures import MOST_PIXELS

LONGEST_INSTRUCTION = 2000
"""Characters; the memory of a forward pass grows with the square of a prompt."""
_INSTRUCTION = ("prompt", "task_description")
_STATE = ("observation/state", "observation.state", "state", "states")
_USUAL = {"third": ("observation/image", "images/agentview"), "wrist": ("observation/wrist_image", "images/wrist")}
"""How clients of openpi and vla-eval call the images of LIBERO's two cameras."""


@dataclass(frozen=True)
class Seen:
    """What a request shows."""

    moments: list[Observation]
    """The oldest first, the present one last."""
    complete: bool
    """Whether these are all that the policy is to see; else this is the next step after those that came before."""

    @property
    def instruction(self) -> str:
        return self.moments[-1].instruction


class ObservationReader:
    """Makes observations of requests."""

    def __init__(self, interface: Interface, keys: Mapping[str, str]) -> None:
        """
        Args:
            keys: where the image of a camera is, if not at one of its usual keys; ``images/x`` is also x in a map
                ``images``.

        Raises:
            ServingError: the policy has no such camera.
        """
        if unknown := [camera for camera in keys if camera not in interface.cameras]:
            raise ServingError(
                f"--camera {unknown[0]}={keys[unknown[0]]}: the policy has no camera {unknown[0]}; it sees "
                f"{', '.join(interface.cameras)}"
            )
        self._interface = interface
        views = [_view(camera) for camera in interface.cameras]
        self.keys = _usual_keys(interface.cameras) | {camera: (key,) for camera, key in keys.items()}
        """The keys at which each camera's image may be."""
        self.has_wrist = "wrist" in views

    def read(self, request: Any) -> Seen:
        """What a request shows: images [height, width, 3] of one moment, or [moments, height, width, 3] of several.

        Raises:
            ObservationError: a camera is missing or unknown, or the observation is not what the policy was trained on.
        """
        if not isinstance(request, Mapping):
            raise ObservationError(f"observation: a map with images and a prompt is expected, not {_kind(request)}")
        nested = request.get("images")
        entries = dict(request)
        if isinstance(nested, Mapping):
            entries |= {f"images/{name}": image for name, image in nested.items()}
        images = {camera: self._image(camera, entries) for camera in self._interface.cameras}
        self._refuse_unknown(entries)
        instruction = _first(entries, _INSTRUCTION)
        if isinstance(instruction, str) and len(instruction) > LONGEST_INSTRUCTION:
            raise ObservationError(f"observation: the instruction has more than {LONGEST_INSTRUCTION:,} characters")
        state = None if self._interface.state_dim is None else _numbers(_first(entries, _STATE))
        seen = self._seen(Observation(images, instruction, state))
        for moment in seen.moments:
            self._interface.check(moment)
            for camera in self._interface.cameras:
                _check_size(camera, moment.images[camera])
        return seen

    def _image(self, camera: str, entries: Mapping[str, Any]) -> Any:
        for key in self.keys[camera]:
            if key in entries:
                return entries[key]
        there = ", ".join(_shown(key) for key, value in entries.items() if _is_image(value)) or "no image"
        raise ObservationError(
            f"observation: lacks the image of {camera}, expected as {' or '.join(self.keys[camera])}; it has {there}; "
            f"`vlatrack serve --camera {camera}=KEY` names another key"
        )

    def _refuse_unknown(self, entries: Mapping[str, Any]) -> None:
        known = {key for keys in (*self.keys.values(), *_USUAL.values()) for key in keys}
        for key, value in entries.items():
            if key not in known and _is_image(value):
                raise ObservationError(
                    f"observation: has an image of an unknown camera, {_shown(key)}; the policy sees "
                    f"{', '.join(self._interface.cameras)}; leave it out, or name its camera with "
                    "`vlatrack serve --camera CAMERA=KEY`"
                )

    def _seen(self, last: Observation) -> Seen:
        images, history = last.images, self._interface.history
        if not images or not all(isinstance(image, np.ndarray) and image.ndim == 4 for image in images.values()):
            return Seen([last], complete=False)
        counts = {len(image) for image in images.values()}
        if len(counts) > 1 or not 1 <= min(counts) <= history:
            raise ObservationError(
                f"observation: the images have {', '.join(map(str, sorted(counts)))} moments; the policy sees "
                f"{history} of each camera, the oldest first; at the start of an episode fewer"
            )
        moments = [
            replace(last, images={camera: image[moment] for camera, image in images.items()})
            for moment in range(counts.pop())
        ]
        return Seen(moments, complete=True)


def libero_images(cameras: Sequence[str]) -> dict[str, str]:
    """Which camera's image goes to each of the keys of openpi's LIBERO client: the only one at the hand, and the only
    other one.

    Raises:
        SpecError: there are two of a kind.
    """
    found: dict[str, str] = {}
    for camera in cameras:
        key = _USUAL[_view(camera)][0]
        if key in found:
            raise SpecError(
                f"acting.request.images: both {found[key]} and {camera} could be {key}; name them: {{KEY: CAMERA}}"
            )
        found[key] = camera
    return found


def _check_size(camera: str, image: NDArray[np.uint8]) -> None:
    """Raise ObservationError for an image that would take more memory than any camera's."""
    height, width, _ = image.shape
    if height * width > MOST_PIXELS:
        raise ObservationError(
            f"observation: the image of {camera} has {width} x {height} pixels, more than {MOST_PIXELS:,}"
        )


def _view(camera: str) -> str:
    return "wrist" if any(part in camera.lower() for part in ("wrist", "hand", "gripper")) else "third"


def _usual_keys(cameras: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each camera the keys with its name; LeRobot's observation.images.x is also x. The only camera at the hand,
    and the only other one, are also found where LIBERO's are."""
    short = {camera: camera.rpartition(".")[2] for camera in cameras}
    views = [_view(camera) for camera in cameras]
    found = {}
    for camera, view in zip(cameras, views, strict=True):
        names = [camera, short[camera]] if list(short.values()).count(short[camera]) == 1 else [camera]
        keys = [camera, *(f"{place}/{name}" for name in reversed(names) for place in ("observation", "images"))]
        found[camera] = tuple(dict.fromkeys(keys + [*_USUAL[view]] * (views.count(view) == 1)))
    return found


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim >= 3


def _first(entries: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entries[key] for key in keys if key in entries), None)


def _numbers(values: Any) -> NDArray[Any] | None:
    """A state that came as an array or a list; what is neither is for the check of the observation to name."""
    if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
        return np.asarray(values, np.float64)
    if values is None or isinstance(values, np.ndarray):
        return values
    raise ObservationError(f"observation: the state is {_kind(values)}; expected an array of numbers")


def _shown(key: Any) -> str:
    """A key that came from outside, short and on one line."""
    return repr(key)[:60]


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"

"""Whether a policy and an evaluation fit together: each difference between what it was trained on and what it would
meet."""

from collections.abc import Iterator
from dataclasses import dataclass

from vlatrack.envs.base import EnvironmentInfo
from vlatrack.errors import SpecError
from vlatrack.evaluation.actors import View
from vlatrack.evaluation.conventions import Gripper
from vlatrack.inference.observation import Interface


@dataclass(frozen=True)
class Conditions:
    """What an evaluation shows a policy, and asks of it; None: it does not say."""

    view: View
    resolution: int | None = None  # of the rendered images; None: the simulator's own
    prompt: str = "language"
    gripper: Gripper = "raw"
    waits: int | None = None  # env steps before the policy acts
    history: int | None = None
    horizon: int | None = None
    statistics: str | None = None  # the first digits of a SHA-256


def misfits(interface: Interface, conditions: Conditions, info: EnvironmentInfo | None = None) -> list[str]:
    """Each difference in one line, with both values.

    Args:
        info: what the simulator is; None: it is elsewhere.
    """
    found = [*_cameras(interface, conditions, info), *_images(interface, conditions, info)]
    found += _terms(interface, conditions)
    if info is not None:
        found += _sizes(interface, info)
    return found


def _cameras(interface: Interface, conditions: Conditions, info: EnvironmentInfo | None) -> Iterator[str]:
    view = conditions.view
    shown = list(view.cameras.values())
    if missing := [camera for camera in interface.cameras if camera not in shown]:
        yield f"cameras: the policy sees {', '.join(missing)}, the evaluation shows {', '.join(shown)}"
    if info is not None and (unknown := [camera for camera in view.cameras if camera not in info.cameras]):
        there = ", ".join(info.cameras) or "none"
        yield f"cameras: the evaluation names {', '.join(unknown)}, the simulator has {there}"


def _images(interface: Interface, conditions: Conditions, info: EnvironmentInfo | None) -> Iterator[str]:
    view, recorded = conditions.view, interface.recorded
    for camera, name in view.cameras.items():
        seen, shown = recorded.image_sizes.get(name), _shown_size(camera, conditions, info)
        if name in interface.cameras and seen is not None and shown is not None and seen != shown:
            trained = f"the policy was trained on images of {name} of {_pixels(seen)} pixels"
            yield f"resolution: {trained}, the evaluation shows {_pixels(shown)}"
    turned = 180 if view.rotated else 0
    if recorded.rotation not in (None, turned):
        yield f"rotation: the policy was trained on images turned by {recorded.rotation}, the evaluation's by {turned}"


def _shown_size(camera: str, conditions: Conditions, info: EnvironmentInfo | None) -> tuple[int, int] | None:
    """Height and width of what the policy gets to see."""
    resized = conditions.view.images.size
    if resized is None and info is not None:
        return info.cameras.get(camera)
    size = conditions.resolution if resized is None else resized
    return None if size is None else (size, size)


def _terms(interface: Interface, conditions: Conditions) -> Iterator[str]:
    asked, recorded = conditions, interface.recorded
    if recorded.prompt not in (None, asked.prompt):
        yield f"prompt: the policy was trained on a task's {recorded.prompt}, the evaluation gives its {asked.prompt}"
    taken = "openvla" if asked.gripper == "openvla" else "raw"
    if recorded.gripper not in (None, taken):
        yield f"gripper: the policy was trained on {recorded.gripper}, the evaluation takes it as {asked.gripper}"
    if None not in (recorded.waits, asked.waits) and recorded.waits != asked.waits:
        begins = f"the policy was trained on episodes that begin after {recorded.waits} env steps"
        yield f"waits: {begins}, the evaluation's after {asked.waits}"
    if asked.history not in (None, interface.history):
        yield f"history: the policy sees {interface.history} moments, the evaluation asks for {asked.history}"
    if asked.horizon not in (None, interface.horizon):
        yield f"horizon: a chunk of the policy has {interface.horizon} steps, the evaluation asks for {asked.horizon}"
    stored = interface.statistics
    if asked.statistics is not None and stored is not None and not stored.startswith(asked.statistics):
        shown = stored[: max(12, len(asked.statistics))]
        yield f"statistics: the policy has {shown}, the evaluation asks for {asked.statistics}"


def _sizes(interface: Interface, info: EnvironmentInfo) -> Iterator[str]:
    if interface.state_dim is not None and interface.state_dim != info.state_dim:
        yield f"state: the policy has {interface.state_dim} numbers, the simulator {info.state_dim}"
    if interface.deltas is not None:
        try:
            interface.steps_back(info.fps)
        except SpecError as error:
            yield str(error)
    if interface.action_dim != info.action_dim:
        yield f"action: the policy has {interface.action_dim} numbers, the simulator {info.action_dim}"


def _pixels(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width} x {height}"

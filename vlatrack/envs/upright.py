"""First images of a built-in simulator, upright, to compare recorded ones with."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.orientation import Turn
from vlatrack.data.formats.libero import words_of_task
from vlatrack.envs.base import Environment, make_environment
from vlatrack.envs.libero import CAMERAS, SUITES
from vlatrack.envs.metaworld import INSTRUCTIONS
from vlatrack.errors import DataError

METAWORLD = "metaworld"
_RESOLUTION = 128
_OF_LIBERO = {
    "agentview": "agentview",
    "agentview_rgb": "agentview",
    "image": "agentview",
    "eye_in_hand_rgb": "robot0_eye_in_hand",
    "robot0_eye_in_hand": "robot0_eye_in_hand",
    "wrist_image": "robot0_eye_in_hand",
    "image2": "robot0_eye_in_hand",
}
"""What its cameras are called in datasets."""
_OF_METAWORLD = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
_PREFIXES = ("observation.images.", "observation.")


def upright_images(
    simulator: str, instructions: Sequence[str], cameras: Sequence[str]
) -> Generator[tuple[str, Mapping[str, NDArray[np.uint8]]]]:
    """For each instruction that is one of its tasks, the images of an initial state, [128, 128, 3], by the names that
    the cameras have in the dataset; of those that the simulator has.

    Args:
        simulator: `metaworld`, or a suite of LIBERO.
        cameras: as the dataset calls them.

    Raises:
        DataError: there is no such simulator, or it has none of these cameras or tasks.
        MissingPackageError: it is not installed.
    """
    if simulator != METAWORLD and simulator not in SUITES:
        raise DataError(f"{simulator!r}: no simulator that can be asked; give {METAWORLD}, {', '.join(SUITES)}")
    own = {camera: name for camera in cameras if (name := _own_name(simulator, camera)) is not None}
    if not own:
        raise DataError(f"{simulator} has none of the cameras {', '.join(cameras)}; leave --render out")
    with closing(_environment(simulator, sorted(set(own.values())))) as environment:
        tasks = {_instruction(simulator, task): task for task in environment.tasks}
        known = [instruction for instruction in instructions if _plain(instruction) in tasks]
        if not known:
            raise DataError(f"{simulator} has no task with the instruction {instructions[0]!r}; leave --render out")
        for instruction in known:
            images = environment.reset(tasks[_plain(instruction)], seed=0).images
            yield instruction, {camera: images[name] for camera, name in own.items()}


def turn_of_rotation(simulator: str, rotation: int) -> Turn:
    """How images differ from upright ones if they are the simulator's turned by 0 or 180 degrees; LIBERO's are upside
    down."""
    if simulator == METAWORLD:
        return "turned by 180 degrees" if rotation else "upright"
    return "mirrored" if rotation else "upside down"


def _environment(simulator: str, cameras: Sequence[str]) -> Environment:
    options: dict[str, object] = {"cameras": tuple(cameras), "resolution": _RESOLUTION}
    if simulator == METAWORLD:
        return make_environment(METAWORLD, options)
    return make_environment("libero", {**options, "benchmark": simulator, "images": "upright", "rendering": "fast"})


def _own_name(simulator: str, camera: str) -> str | None:
    short = camera
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    if simulator != METAWORLD:
        return _OF_LIBERO.get(short, short if short in CAMERAS else None)
    return short if short in _OF_METAWORLD else None


def _instruction(simulator: str, task: str) -> str:
    return _plain(INSTRUCTIONS[task] if simulator == METAWORLD else words_of_task(task))


def _plain(instruction: str) -> str:
    return " ".join(instruction.lower().split()).rstrip(".")

"""Reads LIBERO's demonstrations: a folder of HDF5 files, one per task."""

import hashlib
import json
import re
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.digests import content_fingerprint
from vlatrack.data.formats.hdf5.demonstrations import Hdf5Demonstrations, Order
from vlatrack.data.formats.hdf5.reading import path_of, read_numbers
from vlatrack.data.formats.hdf5.texts import attribute
from vlatrack.errors import DataError

FPS = 20.0
ACTION_DIM = 7  # displacement and rotation of the hand, gripper
STILL = 1e-4  # norm of the first six numbers of an action, below which the robot stands still

Images = Literal["upright", "rotated", "as_stored"]
Prompt = Literal["language", "name"]

_STATE_PARTS = {"ee_states": 6, "gripper_states": 2}
_SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")


class LiberoDataset(Hdf5Demonstrations):
    """LIBERO's *.hdf5 files, as an EpisodeSource.

    LIBERO stores its images upside down. The state is the position and
    axis-angle orientation of the hand and the two finger positions, 8 numbers. The instruction comes
    from the file, else from the file's name.

    Args:
        path: the folder, or one file.
        images: ``upright``, as a person sees the scene: a vertical flip of what is stored; ``rotated``, what is stored
            turned by 180 degrees: the mirror image of that, on which most policies are trained (RynnVLA-002, OpenVLA);
            or ``as_stored``, upside down.
        skip_no_ops: leave out steps that do nothing: the hand stands still and the gripper's command
            is that of the last step kept.
        order: of a file's demonstrations: ``number``; or ``name``, demo_10 before demo_2, as RynnVLA-002 sorts them
            before it takes the last tenth for validation.
        prompt: the instruction is the task's ``language``; or its ``name``, that of the file, with the scene in front
            where it has one, with which RynnVLA-002 trains.

    Raises:
        DataError: no such folder, or no *.hdf5 in it; reading raises it for damaged files.
    """

    cameras = ("agentview_rgb", "eye_in_hand_rgb")
    action_dim = ACTION_DIM
    state_dim = sum(_STATE_PARTS.values())
    fps = FPS
    state_names = ("x", "y", "z", "rotation x", "rotation y", "rotation z", "finger 1", "finger 2")
    action_names = ("dx", "dy", "dz", "rotation x", "rotation y", "rotation z", "gripper")

    def __init__(
        self,
        path: Path | str,
        *,
        skip_no_ops: bool = True,
        images: Images = "upright",
        order: Order = "number",
        prompt: Prompt = "language",
    ) -> None:
        super().__init__(path, order=order)
        self._skip_no_ops, self._show, self._prompt = skip_no_ops, images, prompt

    def fingerprint(self) -> str:
        """SHA-256 over the *.hdf5 files and the settings, all of which decide what is shown."""
        content = content_fingerprint(self._file_digests)
        choices = {
            "with no-ops": not self._skip_no_ops,
            self._show.replace("_", " "): self._show != "upright",
            "by name": self._order == "name",
            "prompts are names": self._prompt == "name",
        }
        made = [name for name, is_made in choices.items() if is_made]
        return hashlib.sha256(" ".join([content, *made]).encode()).hexdigest() if made else content

    def _task(self, file: h5py.File, group: str) -> str:
        path = Path(path_of(file))
        name = path.stem.removesuffix("_demo")
        if self._prompt == "name":
            return words_of_task(name, scene=True)
        return _language(attribute(file, "data", "problem_info"), path) or words_of_task(name)

    def _actions(self, file: h5py.File, group: str) -> NDArray[np.float64]:
        return read_numbers(file, f"{group}/actions", ACTION_DIM)

    def _states(self, file: h5py.File, group: str) -> NDArray[np.float64]:
        parts = [read_numbers(file, f"{group}/obs/{name}", size) for name, size in _STATE_PARTS.items()]
        if len({len(part) for part in parts}) > 1:
            raise DataError(f"{path_of(file)}: {group}: states and actions differ in number; restore the file")
        return np.concatenate(parts, axis=1)

    def _kept(self, actions: NDArray[np.float64]) -> NDArray[np.int64]:
        return moving_steps(actions) if self._skip_no_ops else super()._kept(actions)

    def _turned(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        match self._show:
            case "upright":
                return stored[:, ::-1]
            case "rotated":
                return stored[:, ::-1, ::-1]
            case "as_stored":
                return stored


def is_libero(path: Path) -> bool:
    """Whether the first HDF5 file that can be looked into, at a path, is one of LIBERO's; so is one that cannot."""
    try:
        return LiberoDataset(path).has("obs/agentview_rgb", "obs/ee_states", "obs/gripper_states")
    except DataError:
        return True


def moving_steps(actions: NDArray[np.float64]) -> NDArray[np.int64]:
    """The steps of [T, 7] actions that do something, by the rule of RynnVLA-002 and OpenVLA.

    A step does nothing if the hand stands still and the gripper's command is that of the last step
    kept; before the first one is kept, standing still is enough.
    """
    kept: list[int] = []
    moves, gripper = np.linalg.norm(actions[:, :6], axis=1) >= STILL, actions[:, 6]
    for step in range(len(actions)):
        if moves[step] or (kept and gripper[step] != gripper[kept[-1]]):
            kept.append(step)
    return np.array(kept, dtype=np.int64)


def _language(problem_info: str | None, path: Path) -> str:
    """The instruction in a file's attribute, JSON; empty if there is none."""
    if problem_info is None:
        return ""
    try:
        told = json.loads(problem_info)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: the attribute problem_info is no JSON; restore the file") from None
    text = told.get("language_instruction") if isinstance(told, dict) else None
    if isinstance(text, list):
        text = "".join(part for part in text if isinstance(part, str))
    return text.strip(' "\t\r\n') if isinstance(text, str) else ""


def words_of_task(name: str, *, scene: bool = False) -> str:
    """The name of a task as an instruction, with or without the scene that LIBERO-10 and LIBERO-90 have in front."""
    return (name if scene else _SCENE.sub("", name)).replace("_", " ")

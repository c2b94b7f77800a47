"""Reads robomimic's demonstrations: data/demo_0/actions, data/demo_0/obs/… in one HDF5 file or in several."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.digests import content_fingerprint
from vlatrack.data.formats.hdf5.demonstrations import Hdf5Demonstrations, Order
from vlatrack.data.formats.hdf5.reading import find, find_images, open_file, path_of, read_numbers, telling
from vlatrack.data.formats.hdf5.texts import attribute
from vlatrack.errors import DataError

FPS = 20.0
"""Of robosuite's environments, where a file does not tell."""
STATES = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""Of an observation of robosuite: where the hand is, its orientation as a quaternion x, y, z, w, and the fingers."""


class RobomimicDataset(Hdf5Demonstrations):
    """robomimic's HDF5 files, as an EpisodeSource. Images are upright in them, and shown as they are.

    Args:
        path: a file, or a folder of such.
        action: what a demonstration has as its actions: ``actions``, or for example ``actions_abs``.
        state: names of observations, which are put one behind the other; None: those of `STATES` that the first
            demonstration has; empty: no state.
        cameras: names of observations; None: all that are images in the first demonstration.
        instruction: of all demonstrations; None: each has its own, as RoboCasa's, or the name of the file with spaces.
        order: of a file's demonstrations, by ``number`` or by ``name`` (demo_10 before demo_2).

    Raises:
        DataError: no such file or folder, the first demonstration is damaged, or lacks the action, a state or a camera.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        action: str = "actions",
        state: Sequence[str] | None = None,
        cameras: Sequence[str] | None = None,
        instruction: str | None = None,
        order: Order = "number",
    ) -> None:
        super().__init__(path, order=order)
        self._action, self._instruction = action, instruction
        self._action_size: int | None = None  # until the first demonstration tells
        first = self._first
        with open_file(first.file) as file:
            known = _observations(file, first.group)
            self._state = tuple(name for name in STATES if name in known) if state is None else tuple(state)
            self.cameras = tuple(name for name in known if _is_images(file, first.group, name))
            self.cameras = self.cameras if cameras is None else tuple(cameras)
            for name in (*self._state, *self.cameras):
                if name not in known:
                    raise DataError(f"{first.file}: {first.group} has no {name!r}; observations: {', '.join(known)}")
            self.action_dim = self._action_size = self._actions(file, first.group).shape[1]
            self._sizes = [read_numbers(file, f"{first.group}/obs/{name}").shape[1] for name in self._state]
            self.state_dim = sum(self._sizes)
            self.fps = _fps(attribute(file, "data", "env_args"), first.file)

    def fingerprint(self) -> str:
        """SHA-256 over the files and the settings, all of which decide what is shown."""
        settings = [self._action, self._state, self.cameras, self._instruction, self._order]
        text = content_fingerprint(self._file_digests) + json.dumps(settings)
        return hashlib.sha256(text.encode()).hexdigest()

    def _task(self, file: h5py.File, group: str) -> str:
        if self._instruction is not None:
            return self._instruction
        told = attribute(file, group, "ep_meta")
        language = None if told is None else _json(told, f"{path_of(file)}: {group}: ep_meta").get("lang")
        words = language if isinstance(language, str) else ""
        return words.strip() or Path(path_of(file)).stem.replace("_", " ").strip()

    def _actions(self, file: h5py.File, group: str) -> NDArray[np.float64]:
        return read_numbers(file, f"{group}/{self._action}", self._action_size)

    def _states(self, file: h5py.File, group: str) -> NDArray[np.float64] | None:
        if not self._state:
            return None
        names = [f"{group}/obs/{name}" for name in self._state]
        parts = [read_numbers(file, name, size) for name, size in zip(names, self._sizes, strict=True)]
        if len({len(part) for part in parts}) > 1:
            raise DataError(f"{path_of(file)}: {group}: states and actions differ in number; restore the file")
        return np.concatenate(parts, axis=1)


def _observations(file: h5py.File, group: str) -> list[str]:
    found = find(file, f"{group}/obs")
    with telling(f"{path_of(file)}: {group}/obs"):
        names = [str(name) for name in found] if isinstance(found, h5py.Group) else []
    if not names:
        raise DataError(f"{path_of(file)}: no {group}/obs in it; robomimic's dataset_states_to_obs.py makes it")
    return names


def _is_images(file: h5py.File, group: str, name: str) -> bool:
    """Whether an observation is images; one that is something else is none of the cameras."""
    found = find(file, f"{group}/obs/{name}")
    with telling(f"{path_of(file)}: {group}/obs/{name}"):
        if not isinstance(found, h5py.Dataset) or found.shape is None or len(found.shape) != 4:
            return False
        if found.dtype != np.uint8 or found.shape[-1] != 3:
            return False
    find_images(file, f"{group}/obs/{name}")
    return True


def _fps(env_args: str | None, path: Path) -> float:
    """Env steps in a second, from what the environment was made with."""
    if env_args is None:
        return FPS
    kwargs = _json(env_args, f"{path}: env_args").get("env_kwargs")
    rate = kwargs.get("control_freq", FPS) if isinstance(kwargs, dict) else FPS
    if not isinstance(rate, int | float) or not 0 < rate < 1e4:
        raise DataError(f"{path}: env_args says {rate!r} as control_freq; restore the file")
    return float(rate)


def _json(text: str, place: str) -> dict[str, object]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place} is no JSON; restore the file") from None
    return told if isinstance(told, dict) else {}

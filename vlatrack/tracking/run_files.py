"""Where the tracking of a run lies on the disk."""

import contextlib
import os
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.privacy import shareable_files
from vlatrack.tracking.sharing import share_directory, shares_new_runs

_FOLDERS = ("delivery", "tensorboard", "wandb")
"""In a run directory, what the delivery process writes into."""
_held: dict[tuple[int, int], int] = {}
"""Open folders, by device and inode."""


@dataclass(frozen=True)
class RunFiles:
    """The files below a run directory `<runs>/<experiment>/<run-id>` that tracking owns.

    The directory is resolved once, here: called as `.` or through a symbolic link, a run has the same store. Raises
    TrackerError for a path that no line can show, and for a symbolic link in place of a folder that tracking writes
    into: a run that somebody else made would have its files written anywhere.
    """

    run_dir: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", resolved_path(self.run_dir))
        for name in _FOLDERS:
            if (self.run_dir / name).is_symlink():
                raise TrackerError(f"{self.run_dir / name}: a symbolic link, which no run has there; remove it")

    @property
    def journal(self) -> Path:
        return self.run_dir / "journal.jsonl"

    @property
    def delivery(self) -> Path:
        """Cursors, dead letters and the log of the delivery process."""
        return self.run_dir / "delivery"

    @property
    def backends(self) -> Path:
        """What the delivery process is to serve; holds no secrets."""
        return self.delivery / "backends.json"

    @property
    def health(self) -> Path:
        """The thresholds of the detectors that watch the training; absent if it was never watched."""
        return self.delivery / "health.json"

    @property
    def delivery_lock(self) -> Path:
        """Locked by the delivery process, whose id it holds."""
        return self.delivery / "deliver.lock"

    @property
    def delivery_log(self) -> Path:
        return self.delivery / "deliver.log"

    @property
    def runs(self) -> Path:
        """The folder that all runs share, with the MLflow store."""
        return self.run_dir.parent.parent


def held_path(folder: Path) -> Path:
    """A path that leads to this folder, for as long as this process lives, wherever it is moved meanwhile: libraries
    that keep the plain path would make the folder anew where it was. The folder itself on a system without /proc.

    Raises FileNotFoundError.
    """
    now = folder.stat()
    place = (now.st_dev, now.st_ino)
    if place not in _held:
        _held[place] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held = Path(f"/proc/{os.getpid()}/fd/{_held[place]}")
    return held if held.exists() else folder


def resolved_path(path: Path) -> Path:
    """The absolute path without symbolic links.

    Raises TrackerError for one with control characters or bytes that are not UTF-8, and for a loop of links.
    """
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(path)):
        raise TrackerError(f"{str(path)!r}: a path with a newline or another control character; choose another")
    try:
        return path.resolve()
    except FileNotFoundError as error:  # of the current directory, not of the path
        raise TrackerError("the current directory has been deleted; change to another one") from error
    except RuntimeError as error:
        raise TrackerError(f"{path}: a loop of symbolic links; choose another path") from error


def checked_runs_folder(runs: Path) -> Path:
    """The resolved folder that is to hold all runs, which may be missing yet.

    Raises TrackerError, before anything is created, if it is no folder or cannot be written, or nobody can tell for
    whom runs are to be.
    """
    shares_new_runs()
    folder = resolved_path(runs)
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:  # a folder that may not be looked into
        raise TrackerError(f"{folder}: {error.strerror}; choose another folder for the runs with --runs") from error
    if not existing.is_dir():
        raise TrackerError(f"{existing}: not a folder; choose another folder for the runs with --runs")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise TrackerError(f"{existing}: cannot be written; choose another folder for the runs with --runs")
    return folder


def new_run_directory(folder: Path) -> Path:
    """A directory of a new run in the folder of its experiment, named after the time and four random characters, which
    no other process has made: of a hundred runs in the same second, two draw the same ones in one case of thirteen.

    It is for this user alone, or for the group to read if that is asked for (`sharing.py`); who may create runs beside
    it is the user's choice. Raises OSError if it cannot be made.
    """
    is_for_group = shares_new_runs()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with shareable_files():
        folder.mkdir(parents=True, exist_ok=True)
    for path in missing if is_for_group else ():
        share_directory(path)
    while True:
        path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if is_for_group:
                share_directory(path)
            return path

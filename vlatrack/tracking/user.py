"""What libraries expect of the user who runs them: a name, a home, folders to write into.

In a container (`docker run --user`, Kubernetes) a user id may have none of these: no entry in /etc/passwd, a home that
is missing or read-only, no folder for temporary files.
"""

import getpass
import os
import tempfile
from pathlib import Path

from vlatrack.tracking.privacy import private_directory


def provide_user() -> None:
    """Name this process's user, and give it a home, where the system knows neither; called before libraries ask.

    MLflow names its runs' user so, and torch a folder of its compiled code.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        os.environ["LOGNAME"] = os.environ["USER"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as Docker has it


def provide_folders(folder: Path) -> None:
    """Let the libraries of the trackers write below `folder` what they cannot write where they usually do; what the
    user has set stays."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if "WANDB_CACHE_DIR" not in os.environ and not _can_be_written(cache / "wandb"):
        os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb")
    try:
        usable = tempfile.gettempdir()
    except FileNotFoundError:
        usable = ""
    if usable in ("", _current_folder()):  # Python's last resort is the current folder
        usable = tempfile.tempdir = str(private_directory(folder / "tmp", within=folder))
    os.environ["TMPDIR"] = usable  # for programs that do not look for another one, as Python does


def _can_be_written(folder: Path) -> bool:
    """Whether the folder is there for this user, or can be made."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except OSError:  # a home whose folders may not be looked into
        return False


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it has been deleted
        return ""

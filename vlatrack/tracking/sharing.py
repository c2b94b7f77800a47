"""Who may read the files of a run beside its user: nobody, or the group, if that is asked for.

`VLATRACK_SHARED=group` makes new runs readable by the group of their folder. From then on a run's own folder says so,
whoever goes on with it and whatever the variable is then: what is written below a folder that its group may read, the
group may read as well. Nobody but the user may ever write it.
"""

import os
import pwd
import stat
from pathlib import Path

from vlatrack.errors import TrackerError

VARIABLE = "VLATRACK_SHARED"
_MARK = "journal.jsonl"
_READ, _READ_AND_ENTER = stat.S_IRGRP, stat.S_IRGRP | stat.S_IXGRP
_PRIVATE_UMASK, _SHARED_UMASK = 0o077, 0o027


def shares_new_runs() -> bool:
    """Whether new runs are for the group as well; TrackerError if the variable has no such value."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "group"):
        raise TrackerError(f"{VARIABLE}={value}: expected group, or no value for runs that only you can read")
    return value == "group"


def is_shared(path: Path) -> bool:
    """Whether the group may read what is written at this path: as the folder of its run says, and of a run without a
    journal yet, or outside of any, as the variable does."""
    path = path.absolute()
    for folder in (path, *path.parents):
        if (folder / _MARK).exists():
            return folder.stat().st_mode & _READ_AND_ENTER == _READ_AND_ENTER
    return shares_new_runs()


def umask_for(path: Path | None) -> int:
    """The umask of a process that writes there by whatever library; None: wherever the next new run is."""
    return _SHARED_UMASK if (shares_new_runs() if path is None else is_shared(path)) else _PRIVATE_UMASK


def share_directory(path: Path) -> None:
    """Let the group read a directory; a set-group-ID bit stays, so that what is made in it has the same group."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _READ_AND_ENTER != _READ_AND_ENTER:
        path.chmod(mode | _READ_AND_ENTER)


def share_file(fd: int) -> None:
    """Let the group read an open file of this user."""
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and not found.st_mode & _READ:
        os.fchmod(fd, stat.S_IMODE(found.st_mode) | _READ)


def owner_of(path: Path) -> str:
    """The name of the user that a file or directory belongs to."""
    uid = path.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container
        return f"uid-{uid}"


def check_may_write(run_dir: Path, *, instead: str) -> None:
    """Raise TrackerError if the run is somebody else's who lets this user read it only; `instead` is what to do."""
    if run_dir.stat().st_uid != os.geteuid() and not os.access(run_dir, os.W_OK | os.X_OK, effective_ids=True):
        raise TrackerError(f"{run_dir}: a run of {owner_of(run_dir)}, which you may read but not write; {instead}")

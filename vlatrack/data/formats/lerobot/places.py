"""Where a LeRobot dataset may be: in a folder, in a remote folder, or on the Hugging Face hub."""

from pathlib import Path

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.remote import is_remote, local_copy, shown
from vlatrack.errors import DataError


def open_lerobot(
    path: str | None = None,
    *,
    repo: str | None = None,
    revision: str | None = None,
    action: str = "action",
    state: str | None = "observation.state",
) -> LeRobotDataset:
    """Open a dataset; what is not on this machine is copied to it first.

    Args:
        path: a folder, or the address of a remote one.
        repo: a dataset of the hub instead, `owner/name`; its name becomes `owner/name@commit`.
        revision: its branch, tag or commit; None: the main branch.
        action, state: as for LeRobotDataset.

    Raises:
        DataError: there is no such dataset, or it cannot be reached.
        MissingPackageError: the package for a remote address is not installed.
    """
    if (path is None) == (repo is None):
        raise DataError("a LeRobot dataset has a path, or a repo of the hub: give one of them")
    if repo is not None:
        from vlatrack.data.formats.lerobot.hub import fetch

        fetched = fetch(repo, revision)
        return LeRobotDataset(fetched.folder, action=action, state=state, name=fetched.name)
    assert path is not None, "checked above"
    if is_remote(path):
        return LeRobotDataset(local_copy(path), action=action, state=state, name=shown(path))
    return LeRobotDataset(Path(path), action=action, state=state)

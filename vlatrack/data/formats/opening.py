"""Which format the data at a path has."""

from pathlib import Path

from vlatrack.data.episodes import EpisodeSource


def open_dataset(path: Path, *, action: str, state: str) -> EpisodeSource:
    """The dataset at a path, by what is there.

    Args:
        action, state: for LeRobot, the features that hold them; a dataset without the latter has no state.

    Raises:
        DataError: there is no dataset in a format that vlatrack reads.
    """
    if any(path.glob("*.hdf5")):
        from vlatrack.data.formats.libero import LiberoDataset

        return LiberoDataset(path)
    if path.suffix in (".json", ".jsonl"):
        from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories

        return RynnVlaTrajectories(path)
    from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
    from vlatrack.data.formats.lerobot.layout import read_info

    return LeRobotDataset(path, action=action, state=state if state in read_info(path).features else None)

"""Which format the data at a path has."""

from pathlib import Path

from vlatrack.data.episodes import EpisodeSource

HDF5_SUFFIXES = (".hdf5", ".h5")


def open_dataset(path: Path, *, action: str, state: str) -> EpisodeSource:
    """The dataset at a path, by what is there.

    Args:
        action, state: for LeRobot, the features that hold them; a dataset without the latter has no state.

    Raises:
        DataError: there is no dataset in a format that vlatrack reads.
    """
    if path.suffix in HDF5_SUFFIXES or any(file.suffix in HDF5_SUFFIXES for file in path.glob("*.h*5")):
        from vlatrack.data.formats.libero import LiberoDataset, is_libero
        from vlatrack.data.formats.robomimic import RobomimicDataset

        return LiberoDataset(path) if is_libero(path) else RobomimicDataset(path)
    if path.suffix in (".json", ".jsonl"):
        from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories

        return RynnVlaTrajectories(path)
    from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
    from vlatrack.data.formats.lerobot.layout import read_info

    return LeRobotDataset(path, action=action, state=state if state in read_info(path).features else None)

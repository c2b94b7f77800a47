"""Which format the data at a path has."""

from pathlib import Path

from vlatrack.data.episodes import EpisodeSource
from vlatrack.errors import DataError

HDF5_SUFFIXES = (".hdf5", ".h5")


def open_dataset(
    path: Path,
    *,
    action: str,
    state: str,
    fps: float | None = None,
    split: str = "train",
    instruction: str = "language_instruction",
) -> EpisodeSource:
    """The dataset at a path, by what is there.

    Args:
        action, state: for LeRobot and RLDS, the features that hold them; a dataset without the latter has no state.
            For RLDS several with commas between them, and `.` may stand for the `/` in a name.
        fps: for RLDS, which does not store it; a dataset of another format has its own.
        split, instruction: for RLDS, which part is read, and the feature that holds the instruction.

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
    if (path / "dataset_info.json").is_file() or any(path.glob("*/dataset_info.json")):
        return _open_rlds(path, action=action, state=state, fps=fps, split=split, instruction=instruction)
    from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
    from vlatrack.data.formats.lerobot.layout import read_info

    return LeRobotDataset(path, action=action, state=state if state in read_info(path).features else None)


def _open_rlds(
    path: Path, *, action: str, state: str, fps: float | None, split: str, instruction: str
) -> EpisodeSource:
    from vlatrack.data.formats.rlds.dataset import RldsDataset
    from vlatrack.data.formats.rlds.layout import builder_folder, read_layout

    if fps is None:
        raise DataError(f"{path}: RLDS does not store how many steps a second has; give it, such as --fps 10")
    known = read_layout(builder_folder(path), split).steps

    def features(names: str) -> list[str]:
        return [name if name in known else name.replace(".", "/") for name in names.split(",")]

    states = features(state)
    return RldsDataset(
        path,
        fps=fps,
        split=split,
        action=features(action),
        state=states if all(name in known for name in states) else None,
        instruction=features(instruction)[0],
    )

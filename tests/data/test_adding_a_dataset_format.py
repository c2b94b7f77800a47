"""The format of docs/write-a-dataset-format.md against the contract; test_extension_pages.py trains on it."""

from pathlib import Path

import numpy as np
import pytest
from recipes import module_of
from toy_source import ToySource

from vlatrack.data.episodes import EpisodeSource
from vlatrack.testing.dataset_contract import DatasetContract

FORMAT = module_of("write-a-dataset-format.md", "npz_folder.py")


def write_folder(folder: Path, *, shift: float = 0.0) -> None:
    """The toy's episodes as files of the new format."""
    folder.mkdir()
    source = ToySource(episodes=4, shift=shift)
    for episode in source.episodes():
        np.savez(
            folder / f"{episode.index:03d}.npz",
            task=episode.task,
            actions=episode.actions,
            states=episode.states,
            front=source.frames(episode, "front"),
        )


class TestNpzFolder(DatasetContract):
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        for name, shift in (("demos", 0.0), ("changed", 0.1)):
            write_folder(tmp_path / name, shift=shift)

    def open(self) -> EpisodeSource:
        return FORMAT.NpzFolder(path=str(self.folder / "demos"))

    def open_changed(self) -> EpisodeSource:
        return FORMAT.NpzFolder(path=str(self.folder / "changed"))

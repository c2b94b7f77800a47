"""The contract of a dataset, run against each format that ships, and the toy."""

from pathlib import Path

from toy_source import ToySource

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.testing.dataset_contract import DatasetContract

FIXTURES = Path(__file__).parent / "fixtures"


class TestLeRobotVideo(DatasetContract):
    def open(self) -> EpisodeSource:
        return LeRobotDataset(FIXTURES / "lerobot-v3-video")


class TestLibero(DatasetContract):
    def open(self) -> EpisodeSource:
        return LiberoDataset(FIXTURES / "libero-hdf5")

    def open_changed(self) -> EpisodeSource:
        return LiberoDataset(FIXTURES / "libero-hdf5", skip_no_ops=False)


class TestToy(DatasetContract):
    def open(self) -> EpisodeSource:
        return ToySource()

    def open_changed(self) -> EpisodeSource:
        return ToySource(shift=0.1)

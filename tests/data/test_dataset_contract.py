"""The contract of a dataset, run against each format that ships, and the toy."""

from pathlib import Path

import pytest
from rlds_writer import episode_features, steps_of, write_rlds
from toy_source import ToySource

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.testing.dataset_contract import DatasetContract

FIXTURES = Path(__file__).parent / "fixtures"


class TestLeRobotVideo(DatasetContract):
    def open(self) -> EpisodeSource:
        return LeRobotDataset(FIXTURES / "lerobot-v3-video")


class TestLeRobotPng(DatasetContract):
    @pytest.fixture(autouse=True)
    def _datasets(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        names = ("x", "y")
        for name, shift in (("demos", 0.0), ("changed", 0.1)):
            source = ToySource(episodes=3, shift=shift)
            with LeRobotWriter(
                tmp_path / name,
                fps=10,
                robot_type="square",
                cameras={"front": (32, 32)},
                action_names=names,
                state_names=names,
                storage="png",
            ) as writer:
                for episode in source.episodes():
                    frames = {"front": source.frames(episode, "front")}
                    writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)

    def open(self) -> EpisodeSource:
        return LeRobotDataset(self.folder / "demos")

    def open_changed(self) -> EpisodeSource:
        return LeRobotDataset(self.folder / "changed")


class TestLibero(DatasetContract):
    def open(self) -> EpisodeSource:
        return LiberoDataset(FIXTURES / "libero-hdf5")

    def open_changed(self) -> EpisodeSource:
        return LiberoDataset(FIXTURES / "libero-hdf5", skip_no_ops=False)


class TestRlds(DatasetContract):
    @pytest.fixture(autouse=True)
    def _datasets(self, tmp_path: Path) -> None:
        pytest.importorskip("crc32c")
        self.folder = tmp_path
        for name, shift in (("demos", 0.0), ("changed", 0.1)):
            source = ToySource(episodes=3, shift=shift)
            records = [episode_features(source, episode) for episode in source.episodes()]
            write_rlds(tmp_path / name, records, steps=steps_of(source, 32, 32))

    def open(self) -> EpisodeSource:
        return RldsDataset(self.folder / "demos", fps=10)

    def open_changed(self) -> EpisodeSource:
        return RldsDataset(self.folder / "changed", fps=10)


class TestToy(DatasetContract):
    def open(self) -> EpisodeSource:
        return ToySource()

    def open_changed(self) -> EpisodeSource:
        return ToySource(shift=0.1)

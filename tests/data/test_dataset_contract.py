"""The contract of a dataset, run against each format that ships, and the toy."""

import json
from pathlib import Path

import pytest
from rlds_writer import episode_features, steps_of, write_rlds
from rynnvla_data import vla_conversations, write_trajectories
from toy_source import ToySource

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories
from vlatrack.data.mapping import MappedSource
from vlatrack.data.mixture import MixturePart, MixtureSource
from vlatrack.data.vectors import Constant, VectorMapping
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


class TestRynnVlaConversations(DatasetContract):
    @pytest.fixture(autouse=True)
    def _lists(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        for name, shift in (("demos", 0.0), ("changed", 0.1)):
            trajectories = tmp_path / name / "processed_data" / "toy"
            write_trajectories(trajectories, ToySource(episodes=3, shift=shift), {"front": "imgs_third_view"})
            conversations = vla_conversations(trajectories, history=2, horizon=5, cameras=["imgs_third_view"])
            (tmp_path / name / "processed_data/convs").mkdir()
            (tmp_path / name / "processed_data/convs/all.json").write_text(json.dumps(conversations["all"]))

    def open(self) -> EpisodeSource:
        return RynnVlaTrajectories(self.folder / "demos/processed_data/convs/all.json")

    def open_changed(self) -> EpisodeSource:
        return RynnVlaTrajectories(self.folder / "changed/processed_data/convs/all.json")


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


class TestMapped(DatasetContract):
    def open(self) -> EpisodeSource:
        return self._open(0.0)

    def open_changed(self) -> EpisodeSource:
        return self._open(0.5)

    def _open(self, constant: float) -> EpisodeSource:
        actions = VectorMapping((1, Constant(constant), 0), scale={0: -2.0})
        return MappedSource(LeRobotDataset(FIXTURES / "lerobot-v3-video"), actions=actions, states=VectorMapping((0,)))


class TestMixture(DatasetContract):
    def open(self) -> EpisodeSource:
        return self._open(0.0)

    def open_changed(self) -> EpisodeSource:
        return self._open(0.1)

    def _open(self, shift: float) -> EpisodeSource:
        return MixtureSource([MixturePart(ToySource()), MixturePart(ToySource(shift=shift))])

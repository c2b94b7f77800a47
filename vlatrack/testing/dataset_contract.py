"""The contract of `vlatrack.data.episodes.EpisodeSource` as tests that any dataset format can run against itself.

Subclass `DatasetContract` as a class `Test…` in a test file, say how a small dataset is opened, and run pytest.
"""

import re
from abc import ABC, abstractmethod

import numpy as np

from vlatrack.data.episodes import EpisodeSource, KnowsImageSizes, episodes_digest


class DatasetContract(ABC):
    """What every dataset must offer."""

    @abstractmethod
    def open(self) -> EpisodeSource:
        """The dataset, opened anew."""

    def open_changed(self) -> EpisodeSource | None:
        """The dataset with another number or pixel in it; None: not tried."""
        return None

    def test_it_says_where_it_is_from_and_what_it_holds(self) -> None:
        source = self.open()
        assert source.name.strip()
        assert source.fps > 0
        assert source.action_dim > 0
        assert len(set(source.cameras)) == len(source.cameras)

    def test_episodes_have_actions_and_states_of_its_dimensions(self) -> None:
        source = self.open()
        episodes = source.episodes()
        assert episodes
        for episode in episodes:
            place = f"episode {episode.index}"
            assert episode.task == episode.task.strip() != "", place
            assert episode.length > 0, place
            assert episode.actions.shape == (episode.length, source.action_dim), place
            assert np.isfinite(episode.actions).all(), place
            assert (episode.states is None) == (source.state_dim == 0), place
            if episode.states is not None:
                assert episode.states.shape == (episode.length, source.state_dim), place
                assert np.isfinite(episode.states).all(), place

    def test_episodes_come_by_their_index_and_are_the_same_each_time(self) -> None:
        source = self.open()
        indices = [episode.index for episode in source.episodes()]
        assert indices == sorted(set(indices))
        digest = episodes_digest(source.episodes())
        assert digest == episodes_digest(source.episodes()) == episodes_digest(self.open().episodes())

    def test_there_is_a_frame_for_every_action(self) -> None:
        source = self.open()
        sizes: dict[str, set[tuple[int, ...]]] = {camera: set() for camera in source.cameras}
        for episode in source.episodes():
            for camera in source.cameras:
                frames = source.frames(episode, camera)
                place = f"episode {episode.index}, {camera}"
                assert frames.dtype == np.uint8, place
                assert frames.ndim == 4, place
                assert (len(frames), frames.shape[-1]) == (episode.length, 3), place
                sizes[camera].add(frames.shape[1:])
        assert all(len(of_camera) == 1 for of_camera in sizes.values()), f"a camera's frames differ in size: {sizes}"
        if isinstance(source, KnowsImageSizes):
            told = {camera: {(*source.image_size(camera), 3)} for camera in source.cameras}
            assert told == sizes, "it tells other sizes than its frames have"

    def test_frames_are_the_same_each_time(self) -> None:
        source, again = self.open(), self.open()
        episode = source.episodes()[-1]
        for camera in source.cameras:
            frames = source.frames(episode, camera)
            assert np.array_equal(frames, source.frames(episode, camera))
            assert np.array_equal(frames, again.frames(again.episodes()[-1], camera))

    def test_the_fingerprint_follows_the_content(self) -> None:
        fingerprint = self.open().fingerprint()
        assert re.fullmatch(r"[0-9a-f]{64}", fingerprint), "SHA-256 in hexadecimal digits"
        assert self.open().fingerprint() == fingerprint
        changed = self.open_changed()
        assert changed is None or changed.fingerprint() != fingerprint

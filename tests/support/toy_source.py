"""A dataset made on the spot: a square moves to a goal, and the actions say how."""

import hashlib
from dataclasses import replace

import numpy as np

from vlatrack.data.episodes import Episode

STEPS = 14


class ToySource:
    name = "toy"
    cameras = ("front",)
    action_dim = 2
    state_dim = 2
    fps = 10.0

    def __init__(
        self,
        *,
        episodes: int = 12,
        shift: float = 0.0,
        fail_in_episode: int | None = None,
        reverse: bool = False,
        changed_frame: int | None = None,
    ) -> None:
        """`changed_frame`: the step of a frame of episode 3 of which one pixel is another."""
        generator = np.random.default_rng(0)
        self._fail_in_episode, self._episodes = fail_in_episode, []
        for index in range(episodes):
            goal, position = generator.uniform(-1, 1, (2, 2))
            states, actions = [], []
            for _ in range(STEPS):
                states.append(position)
                actions.append(np.clip(2 * (goal - position) + shift, -1, 1))
                position = position + 0.2 * actions[-1]
            task = "push the square" if index < 10 else "pull the square"
            self._episodes.append(Episode(index, task, np.asarray(actions, np.float32), np.asarray(states, np.float32)))

        self._reverse, self._changed_frame = reverse, changed_frame

    def episodes(self) -> list[Episode]:
        """With `reverse` the same files are read in another order."""
        order = reversed(self._episodes) if self._reverse else self._episodes
        return [replace(episode, index=index) for index, episode in enumerate(order)]

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        if episode.index == self._fail_in_episode:
            raise RuntimeError("the disk caught fire")
        frames = np.zeros((episode.length, 32, 32, 3), np.uint8)
        corners = np.clip((episode.states + 2) * 7, 0, 26).astype(int)
        for frame, (x, y) in zip(frames, corners, strict=True):
            frame[x : x + 6, y : y + 6] = 200
        if self._changed_frame is not None and episode.index == 3:
            frames[self._changed_frame, 0, 0] = 1
        return frames

    def fingerprint(self) -> str:
        content = b"".join(episode.states.tobytes() + episode.actions.tobytes() for episode in self._episodes)
        changed = b"" if self._changed_frame is None else bytes([self._changed_frame])
        return hashlib.sha256(content + changed).hexdigest()

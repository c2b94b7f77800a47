"""Whole episodes in chunks: which, where the chunks begin, and how they are joined."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlatrack.data.episodes import Episode
from vlatrack.evaluation.trajectories import _joined, choose_episodes, chunk_starts

EPISODE = Episode(0, "push", np.zeros((9, 1), np.float32), None)
SHORT = replace(EPISODE, actions=np.zeros((2, 1), np.float32))


def test_each_task_comes_once_before_any_comes_twice() -> None:
    tasks = ["push", "push", "push", "pull", "pull", "lift"]
    episodes = [replace(EPISODE, task=task) for task in tasks]
    assert [choose_episodes(episodes, count, horizon=3) for count in (0, 2, 4, 9)] == [
        [],
        [0, 3],
        [0, 3, 5, 1],
        [0, 3, 5, 1, 4, 2],
    ]
    assert choose_episodes([SHORT, EPISODE], 2, horizon=3) == [1]


@pytest.mark.parametrize(
    ("length", "starts"), [(3, (0,)), (4, (0, 1)), (6, (0, 3)), (7, (0, 3, 4)), (8, (0, 3, 5)), (9, (0, 3, 6))]
)
def test_chunks_cover_an_episode_and_stay_inside(length: int, starts: tuple[int, ...]) -> None:
    assert chunk_starts(length, 3) == starts


def test_where_chunks_overlap_the_earlier_one_counts() -> None:
    chunks = torch.tensor([[0, 1, 2], [10, 11, 12], [20, 21, 22]], dtype=torch.float32)[..., None]
    assert _joined(chunks, (0, 3, 4), 7)[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 22]

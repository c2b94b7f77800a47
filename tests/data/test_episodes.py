"""Which episodes of a dataset are used."""

from collections.abc import Sequence

import numpy as np
import pytest
from toy_source import ToySource

from vlatrack.data.episodes import Episode, action_names, episodes_digest
from vlatrack.data.recorded import image_sizes
from vlatrack.data.selection import select_episodes
from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable
from vlatrack.errors import DataError


class ListOfEpisodes:
    """A source without frames, for what only concerns the choice."""

    cameras: tuple[str, ...] = ()
    action_dim = 2
    state_dim = 0
    fps = 10.0
    name = "demos"

    def __init__(self, tasks: Sequence[str]) -> None:
        actions = np.zeros((3, 2), dtype=np.float32)
        self._episodes = [Episode(index, task, actions, None) for index, task in enumerate(tasks)]

    def episodes(self) -> Sequence[Episode]:
        return self._episodes

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        raise AssertionError("the choice needs no frames")

    def fingerprint(self) -> str:
        return ""


def table(tasks: Sequence[str]) -> EpisodeTable:
    return EpisodeTable.of(ListOfEpisodes(tasks).episodes(), name="demos")


def indices(episodes: EpisodeList) -> list[int]:
    return [episode.index for episode in episodes]


def test_actions_have_the_names_that_a_dataset_knows() -> None:
    class Named(ListOfEpisodes):
        action_names = ("dx", "dy")

    class Wrong(ListOfEpisodes):
        action_names = ("dx",)

    assert action_names(Named(["a"])) == ("dx", "dy")
    assert action_names(ListOfEpisodes(["a"])) == action_names(Wrong(["a"])) == ("action 0", "action 1")


def test_the_last_tenth_is_taken_of_each_task_by_itself() -> None:
    source = table(["a", "b"] * 20)  # a: even indices, b: odd ones
    assert indices(select_episodes(source, part="last_tenth")) == [36, 37, 38, 39]
    assert indices(select_episodes(source, part="all_but_last_tenth")) == list(range(36))


def test_the_two_parts_are_disjoint_and_make_up_all() -> None:
    for count in range(2, 35):
        source = table(["a"] * count + ["b"] * (count + 7))
        training = indices(select_episodes(source, part="all_but_last_tenth"))
        held_out = indices(select_episodes(source, part="last_tenth"))
        assert sorted(training + held_out) == indices(select_episodes(source))
        assert len(held_out) == max(1, count // 10) + max(1, (count + 7) // 10)


def test_a_task_with_one_episode_keeps_it_for_training() -> None:
    source = table(["a", "b", "b"])
    assert indices(select_episodes(source, part="all_but_last_tenth")) == [0, 1]
    assert indices(select_episodes(source, part="last_tenth")) == [2]


def test_tasks_can_be_chosen_and_left_out() -> None:
    source = table(["a", "b", "c", "a"])
    assert indices(select_episodes(source, tasks=("a", "c"))) == [0, 2, 3]
    assert indices(select_episodes(source, exclude_tasks=("a",))) == [1, 2]


def test_an_unknown_task_is_named_with_a_suggestion_and_the_tasks_that_exist() -> None:
    source = table(["open the window", "close the door", "close the door"])
    with pytest.raises(DataError, match="did you mean 'open the window'") as caught:
        select_episodes(source, tasks=("open the windows",))
    assert "'close the door' (2)" in str(caught.value)
    with pytest.raises(DataError, match="no task 'fly'"):
        select_episodes(source, exclude_tasks=("fly",))


def test_an_empty_choice_is_an_error() -> None:
    source = table(["a", "b"])
    with pytest.raises(DataError, match="no episode is left"):
        select_episodes(source, exclude_tasks=("a", "b"))
    with pytest.raises(DataError, match="no episode is left"):
        select_episodes(source, part="last_tenth")


def test_an_episode_whose_states_and_actions_differ_in_length_cannot_exist() -> None:
    with pytest.raises(AssertionError):
        Episode(0, "a", np.zeros((3, 2), np.float32), np.zeros((4, 2), np.float32))


def test_the_digest_of_episodes_notices_any_change_and_their_order() -> None:
    actions, states = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    moved = actions.copy()
    moved[2, 1] = np.nextafter(np.float32(0), np.float32(1))
    first, second = Episode(0, "a", actions, states), Episode(1, "a", actions, states)
    choices = [
        [],
        [first],
        [first, second],
        [second, first],
        [Episode(0, "b", actions, states)],
        [Episode(0, "a", moved, states)],
        [Episode(0, "a", actions, moved)],
        [Episode(0, "a", actions, None)],
        [Episode(0, "a", actions[:2], states[:2])],
        [Episode(0, "a", actions.reshape(2, 3), None)],
    ]
    digests = [episodes_digest(choice) for choice in choices]
    assert len(set(digests)) == len(choices)
    assert all(len(digest) == 64 for digest in digests)
    transposed = np.zeros((2, 3), np.float32).T  # the same numbers, laid out otherwise in memory
    assert episodes_digest([Episode(0, "a", transposed, states)]) == digests[1]


def test_the_size_of_images_is_looked_up_where_a_dataset_does_not_tell_it() -> None:
    source = ToySource()
    assert image_sizes(source, source.episodes()[0], ("front",)) == {"front": (32, 32)}

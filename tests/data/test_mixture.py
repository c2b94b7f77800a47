"""Several datasets as one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_source import ToySource

from vlatrack.data.episodes import Episode, frame_pieces
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.mapping import MappedSource
from vlatrack.data.mixture import MixturePart, MixtureSource
from vlatrack.data.selection import select_episodes
from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable
from vlatrack.data.vectors import VectorMapping
from vlatrack.errors import DataError

VIDEO = Path(__file__).parent / "fixtures" / "lerobot-v3-video"


class Named(ToySource):
    def __init__(self, name: str, **changed: object) -> None:
        super().__init__(**{key: changed.pop(key) for key in ("episodes", "shift") if key in changed})
        self.name = name
        for key, value in changed.items():
            setattr(self, key, value)


def mixture(*sources: ToySource) -> MixtureSource:
    return MixtureSource([MixturePart(source) for source in sources])


def test_episodes_of_the_parts_follow_one_another_and_keep_what_they_are() -> None:
    one, other = Named("one", episodes=5), Named("other", episodes=12, shift=0.1)
    both = mixture(one, other)
    episodes = both.episodes()
    assert [episode.index for episode in episodes] == list(range(17))
    assert [both.part_of(episode.index) for episode in episodes] == [0] * 5 + [1] * 12
    assert both.episode_count == 17
    for own, episode in zip([*one.episodes(), *other.episodes()], episodes, strict=True):
        assert episode.task == own.task
        assert np.array_equal(episode.actions, own.actions)
    frames = both.frames(episodes[8], "front")
    assert np.array_equal(frames, other.frames(other.episodes()[3], "front"))
    assert np.array_equal(np.concatenate(list(frame_pieces(both, episodes[8], "front", 3, 6))), frames[3:6])
    assert both.image_size("front") == (32, 32)


def test_a_cap_takes_episodes_evenly_and_the_same_each_time() -> None:
    table = EpisodeTable.of(ToySource(episodes=10).episodes())
    for cap, expected in ((1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))):
        assert select_episodes(table, cap=cap).indices.tolist() == expected


def test_chosen_episodes_of_the_parts_are_joined_without_copying_them() -> None:
    one, other = Named("one", episodes=5), Named("other", episodes=12, shift=0.1)
    both = mixture(one, other)
    lists = [EpisodeTable.of(source.episodes()).all() for source in (one, other)]
    chosen = [EpisodeList(lists[0].table, [1, 4]), EpisodeList(lists[1].table, [0, 7])]
    joined = EpisodeList.joined(chosen, name="both", first_indices=both.first_indices, with_states=True)
    expected = [episode for episode in both.episodes() if episode.index in (1, 4, 5, 12)]
    for episode, wanted in zip(joined, expected, strict=True):
        assert (episode.index, episode.task) == (wanted.index, wanted.task)
        assert np.array_equal(episode.actions, wanted.actions)
        assert np.array_equal(episode.states, wanted.states)
    assert joined.table.shards[0].actions is lists[0].table.shards[0].actions
    without = EpisodeList.joined(chosen, name="both", first_indices=both.first_indices, with_states=False)
    assert [episode.states for episode in without] == [None] * 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"action_dim": 3},
            r"actions of one have 2 numbers, those of other 3; choose dimensions, or add constants, with ac",
        ),
        ({"state_dim": 0}, r"states of one have 2 numbers, those of other 0; .* with states: \{dimensions: \[…\]\}"),
        (
            {"action_names": ("claw", "x")},
            "actions: x is number 0 in one and number 1 in other; put them into one order with actions",
        ),
        ({"cameras": ("top",)}, r"no camera that all have \(one: front; other: top\); give them one name"),
    ],
    ids=["actions", "states", "order", "cameras"],
)
def test_datasets_that_do_not_fit_are_both_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mixture(Named("one", action_names=("x", "y")), Named("other", **changed))


def test_states_that_nobody_uses_need_not_fit() -> None:
    parts = [MixturePart(Named("one")), MixturePart(Named("other", state_dim=9))]
    both = MixtureSource(parts, use_states=False)
    assert both.state_dim == 0
    assert all(episode.states is None for episode in both.episodes())
    frames = both.frames(both.episodes()[3], "front")  # the toy draws them from the state
    assert np.array_equal(frames, Named("one").frames(Named("one").episodes()[3], "front"))


def test_a_mapping_makes_datasets_fit() -> None:
    one, other = (
        Named("one", action_names=("x", "y")),
        Named("other", action_names=("y", "x"), cameras=("top", "front")),
    )
    mapped = MappedSource(other, actions=VectorMapping(("x", "y")), cameras={"front": "wrist", "top": "front"})
    both = mixture(one, mapped)
    assert both.cameras == ("front",)
    assert both.action_names == ("x", "y")
    assert np.array_equal(both.episodes()[12].actions, one.episodes()[0].actions[:, ::-1])


def test_other_words_for_the_same_numbers_fit() -> None:
    assert mixture(Named("one", action_names=("x", "y")), Named("two", action_names=("dx", "dy"))).action_names == (
        "x",
        "y",
    )


def test_other_rates_are_said_and_equal_ones_are_not() -> None:
    assert mixture(Named("one"), Named("other")).rate_warning is None
    warning = mixture(Named("one"), Named("other", fps=15.0)).rate_warning
    assert warning is not None
    assert warning.startswith("one has 10, other has 15 steps a second, so a chunk lasts longer on one robot")


def test_the_fingerprint_follows_each_part_and_their_order() -> None:
    plain, changed = Named("one"), Named("other", shift=0.1)
    same_again = mixture(Named("elsewhere"), Named("here", shift=0.1))
    assert mixture(plain, changed).fingerprint() == same_again.fingerprint()
    assert len({mixture(*parts).fingerprint() for parts in ((plain, changed), (changed, plain), (plain, plain))}) == 3


def test_bad_episodes_of_a_part_are_left_out_and_keep_their_place() -> None:
    class Patchy(Named):
        def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
            for episode in self.episodes():
                if episode.index in (1, 4):
                    on_bad(episode.index, DataError(f"{self.name}: episode {episode.index}: damaged"))
                else:
                    yield episode

    both = mixture(Patchy("one", episodes=5), Patchy("other", episodes=6))
    told: list[tuple[int, str]] = []
    found = list(both.readable_episodes(lambda position, error: told.append((position, str(error)))))
    assert [episode.index for episode in found] == [0, 2, 3, 5, 7, 8, 10]
    assert [position for position, _ in told] == [1, 4, 6, 9]
    assert told[-1] == (9, "other: episode 4: damaged")
    # The last episode of a part may be the bad one: the next part does not move.
    assert [both.part_of(index) for index in (4, 5)] == [0, 1]


def test_files_and_frames_are_found_in_a_part_of_files() -> None:
    alone = LeRobotDataset(VIDEO)
    both = MixtureSource([MixturePart(ToySource()), MixturePart(renamed(alone))])
    last = both.episodes()[-1]
    assert np.array_equal(both.frames(last, "front"), alone.frames(alone.episodes()[-1], alone.cameras[0]))
    assert set(both.file_digests()) == {f"1/{name}" for name in alone.file_digests()}
    with pytest.raises(DataError, match="no camera 'top' in all of them; there: front"):
        both.frames(last, "top")


def renamed(source: LeRobotDataset) -> MappedSource:
    """The camera and the numbers of the toy, as far as that matters here."""
    return MappedSource(
        source, actions=VectorMapping((0, 1)), states=VectorMapping((0, 1)), cameras={source.cameras[0]: "front"}
    )

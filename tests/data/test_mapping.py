"""A robot's numbers and cameras as another's."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from toy_source import ToySource

from vlatrack.data.episodes import Episode, frame_pieces
from vlatrack.data.mapping import MappedSource
from vlatrack.data.vectors import GRIPPER_CONVENTIONS, Constant, GripperConversion, VectorMapping
from vlatrack.errors import DataError


class Robot(ToySource):
    """A toy whose numbers have names: two of the hand, and a gripper that opens half-way through."""

    action_dim = 3
    action_names = ("dx", "dy", "gripper")
    cameras = ("front", "wrist")
    convention = GRIPPER_CONVENTIONS["raw"]

    def episodes(self) -> list[Episode]:
        found = []
        for episode in super().episodes():
            gripper = np.linspace(self.convention.open, self.convention.closed, episode.length, dtype=np.float32)
            actions = np.concatenate([episode.actions, gripper[:, None]], axis=1)
            found.append(Episode(episode.index, episode.task, actions, episode.states))
        return found


def mapped(**mapping: object) -> np.ndarray:
    """The actions of one episode, mapped."""
    return MappedSource(Robot(), actions=VectorMapping(**mapping)).episodes()[3].actions


PLAIN = Robot().episodes()[3].actions


def test_dimensions_are_kept_left_out_moved_and_filled_by_number_and_by_name() -> None:
    assert np.array_equal(mapped(dimensions=(1, 0)), PLAIN[:, [1, 0]])
    assert np.array_equal(mapped(dimensions=("gripper", "dx")), PLAIN[:, [2, 0]])
    padded = mapped(dimensions=("dx", Constant(0.25), "2", 1))
    assert np.array_equal(padded[:, [0, 2, 3]], PLAIN[:, [0, 2, 1]])
    assert (padded[:, 1] == 0.25).all()
    assert padded.dtype == np.float32


def test_numbers_that_stay_keep_their_bits() -> None:
    assert mapped().tobytes() == PLAIN.tobytes()
    assert mapped(scale={"dy": -1})[:, [0, 2]].tobytes() == PLAIN[:, [0, 2]].tobytes()


def test_factors_change_unit_and_sign_of_the_dimension_that_the_dataset_names() -> None:
    changed = mapped(dimensions=("gripper", "dy", "dx"), scale={0: 0.01, "dy": -1})
    assert changed[:, 2] == pytest.approx(PLAIN[:, 0] * 0.01)
    assert np.array_equal(changed[:, 1], -PLAIN[:, 1])
    assert np.array_equal(changed[:, 0], PLAIN[:, 2])


@pytest.mark.parametrize("before", GRIPPER_CONVENTIONS)
@pytest.mark.parametrize("after", GRIPPER_CONVENTIONS)
def test_a_gripper_goes_from_any_convention_to_any(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    monkeypatch.setattr(Robot, "convention", GRIPPER_CONVENTIONS[before])
    conversion = GripperConversion(("gripper",), GRIPPER_CONVENTIONS[before], GRIPPER_CONVENTIONS[after])
    found = mapped(gripper=conversion)[:, 2]
    wanted = GRIPPER_CONVENTIONS[after]
    assert (found[0], found[-1]) == (wanted.open, wanted.closed)
    assert found == pytest.approx(np.linspace(wanted.open, wanted.closed, len(found)), abs=1e-5)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"dimensions": ("dx", "griper")},
            r"toy: actions: no dimension 'griper' \(did you mean 'gripper'\?\); there are 0 to 2: dx, dy",
        ),
        ({"dimensions": (0, 3)}, "no dimension 3; there are 0 to 2: dx, dy, gripper"),
        ({"scale": {"3": 2.0}}, "no dimension 3;"),
        ({"scale": {0: 2.0, "dx": 2.0}}, r"dimension 0 \(dx\) is scaled or a gripper more than once; say it once"),
        (
            {
                "scale": {2: 2.0},
                "gripper": GripperConversion((2,), GRIPPER_CONVENTIONS["raw"], GRIPPER_CONVENTIONS["openvla"]),
            },
            r"dimension 2 \(gripper\) is scaled or a gripper more than once",
        ),
        ({"dimensions": (0, 1), "scale": {"gripper": 2.0}}, r"dimension 2 \(gripper\) .* not among the dimensions"),
    ],
    ids=["name", "number", "text number", "twice", "scaled gripper", "left out"],
)
def test_a_dimension_that_is_not_there_is_named_with_those_that_are(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mapped(**mapping)


def test_a_robot_without_a_state_can_have_a_constant_one_and_no_other() -> None:
    class Stateless(ToySource):
        state_dim = 0

        def episodes(self) -> list[Episode]:
            return [Episode(own.index, own.task, own.actions, None) for own in super().episodes()]

    zeros = MappedSource(Stateless(), states=VectorMapping((Constant(0), Constant(1))))
    assert zeros.state_dim == 2
    assert np.array_equal(zeros.episodes()[0].states, [[0, 1]] * 14)
    with pytest.raises(DataError, match="toy: states: there are none in this dataset, so only constants"):
        MappedSource(Stateless(), states=VectorMapping((0, Constant(1))))


def test_states_go_their_own_way() -> None:
    source = MappedSource(Robot(), states=VectorMapping((1, 0)))
    own = Robot().episodes()[2]
    assert np.array_equal(source.episodes()[2].states, own.states[:, ::-1])
    assert np.array_equal(source.episodes()[2].actions, own.actions)
    assert (source.action_names, source.state_names) == (("dx", "dy", "gripper"), ())


def test_cameras_have_new_names_and_the_same_frames() -> None:
    plain, episode = Robot(), Robot().episodes()[4]
    source = MappedSource(plain, states=VectorMapping((1,)), cameras={"front": "third_person"})
    assert source.cameras == ("third_person", "wrist")
    # The toy draws its frames from the state, which this source has no more.
    found = source.frames(source.episodes()[4], "third_person")
    assert np.array_equal(found, plain.frames(episode, "front"))
    pieces = np.concatenate(list(frame_pieces(source, source.episodes()[4], "wrist", 2, 9)))
    assert np.array_equal(pieces, found[2:9])
    assert source.image_size("third_person") == (32, 32)
    with pytest.raises(DataError, match="no camera 'front'; its cameras: third_person, wrist"):
        source.frames(episode, "front")


def test_two_cameras_can_swap_their_names_but_not_share_one() -> None:
    source = MappedSource(Robot(), cameras={"front": "wrist", "wrist": "front"})
    assert source.cameras == ("wrist", "front")
    with pytest.raises(DataError, match="the cameras 'front' and 'wrist' would both be called 'wrist'"):
        MappedSource(Robot(), cameras={"front": "wrist"})
    with pytest.raises(
        DataError, match=r"no camera 'fron' to rename \(did you mean 'front'\?\); its cameras: front, wrist"
    ):
        MappedSource(Robot(), cameras={"fron": "wrist"})


def test_the_fingerprint_follows_what_is_made_of_the_numbers_not_how_it_is_said() -> None:
    plain = Robot().fingerprint()
    assert MappedSource(Robot()).fingerprint() == plain
    assert MappedSource(Robot(), actions=VectorMapping((0, "dy", 2))).fingerprint() == plain
    by_name, by_number = (
        MappedSource(Robot(), actions=VectorMapping(order)).fingerprint() for order in ((1, 0), ("dy", "dx"))
    )
    others = [
        MappedSource(Robot(), actions=VectorMapping(scale={0: 2.0})),
        MappedSource(Robot(), states=VectorMapping((1, 0))),
        MappedSource(Robot(), cameras={"front": "third_person"}),
        MappedSource(Robot(), actions=VectorMapping((1, Constant(0)))),
        MappedSource(Robot(), actions=VectorMapping((1, Constant(1)))),
    ]
    assert by_name == by_number
    assert len({plain, by_name, *(other.fingerprint() for other in others)}) == len(others) + 2


def test_a_bad_episode_is_left_out_of_a_mapped_dataset_too() -> None:
    class Patchy(Robot):
        def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
            for episode in self.episodes():
                if episode.index == 2:
                    on_bad(2, DataError("toy: episode 2: damaged"))
                else:
                    yield episode

    told: list[int] = []
    source = MappedSource(Patchy(), actions=VectorMapping((1,)))
    found = list(source.readable_episodes(lambda position, _: told.append(position)))
    assert (len(found), told) == (11, [2])
    assert found[2].index == 3
    assert np.array_equal(found[2].actions, PLAIN[:, [1]])
    assert source.episode_count == 12

"""A sample shows the images of the same moments, in seconds, at any rate and by any clock."""

from dataclasses import replace

import numpy as np
import pytest

from vlatrack.data.deltas import Deltas, DeltaSteps
from vlatrack.data.episodes import Episode
from vlatrack.data.mapping import MappedSource
from vlatrack.data.samples import Encoding, SampleSet, check_lengths
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.image_codes import ImageCodes
from vlatrack.errors import DataError
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer

LAYOUT = TokenLayout()
STEPS = 12
HALF_A_SECOND = Deltas((-0.5, 0.0))


class Clock:
    """A dataset of episodes with clocks of their own; None: it tells no times."""

    name, cameras, action_dim, state_dim = "robot", ("front",), 1, 0

    def __init__(self, fps: float, *clocks: np.ndarray | None) -> None:
        self.fps, self.clocks = fps, clocks

    def episodes(self) -> list[Episode]:
        actions = np.zeros((STEPS, 1), np.float32)
        return [Episode(index, "push", actions, None) for index in range(len(self.clocks))]

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "f" * 64

    def step_times(self):
        return ((index, clock) for index, clock in enumerate(self.clocks) if clock is not None)


class Blank:
    codes_per_side = 2

    def fingerprint(self) -> str:
        return "e" * 64


def samples_of(
    deltas: Deltas, *sources: Clock, repeats_start: bool = True, kind: str = "vla", world_history: int | None = None
) -> SampleSet:
    """Samples whose image codes are the number of their step, and 100 more in each episode."""
    encoding = Encoding(
        layout=LAYOUT,
        bins=Bins(8),
        action_range=ValueRange((-1.0,), (1.0,)),
        state_range=None,
        text=ByteTokenizer(LAYOUT),
        images=Blank(),
        cameras=("front",),
        history=len(deltas.seconds),
        horizon=1,
        max_length=400,
        repeats_start=repeats_start,
        world_history=world_history,
        deltas=deltas,
    )
    lists = [EpisodeList.of(source.episodes()) for source in sources]
    steps = DeltaSteps.joined([DeltaSteps.of(*part, deltas) for part in zip(sources, lists, strict=True)])
    firsts = [0, *np.cumsum([len(part) for part in lists])[:-1].tolist()]
    episodes = EpisodeList.joined(lists, name="all", first_indices=firsts, with_states=False)
    of_steps = [np.arange(STEPS) + 100 * number + 1000 for number in range(len(episodes))]
    codes = [np.broadcast_to(ids[:, None, None], (STEPS, 2, 2)) for ids in of_steps]
    return SampleSet(episodes, [ImageCodes.of(codes)], encoding, (kind,), delta_steps=steps)


def shown(samples: SampleSet, episode: int, step: int) -> list[int]:
    """The steps of the images of a sample."""
    (kind,) = samples._kinds
    ids = samples.at(kind, episode, step).input_ids
    starts = np.flatnonzero(ids == LAYOUT.image_start)
    return [int(ids[start + 3]) - 1000 - 100 * episode for start in starts]


def test_a_delta_is_the_same_time_in_datasets_of_other_rates() -> None:
    samples = samples_of(HALF_A_SECOND, Clock(10, None), Clock(4, None, None))
    assert [shown(samples, episode, 7) for episode in range(3)] == [[2, 7], [5, 7], [5, 7]]
    assert shown(samples, 0, 3) == [0, 3], "before the start the first step stands for earlier ones"
    assert shown(samples, 1, 3) == [1, 3]


def test_a_history_that_is_shorter_at_the_start_has_what_there_is_at_each_rate() -> None:
    samples = samples_of(HALF_A_SECOND, Clock(10, None), Clock(4, None), repeats_start=False)
    assert [shown(samples, episode, 3) for episode in range(2)] == [[3], [1, 3]]
    numbers = np.arange(len(samples))
    lengths = [len(samples[number].input_ids) for number in numbers]
    assert samples.lengths_of(numbers).tolist() == lengths
    assert len(samples.longest("vla").input_ids) == max(lengths)
    batch = samples.batch([3, STEPS + 3])
    assert (batch.input_ids == LAYOUT.image_start).sum(dim=1).tolist() == [1, 2], "of one batch"
    check_lengths(samples.episodes, replace(samples._encoding, max_length=max(lengths)), ["vla"])


def test_where_the_clock_varies_the_nearest_step_in_time_is_shown() -> None:
    slow_in_the_middle = np.cumsum([0, *[0.1] * 4, 0.25, 0.15, 0.2, *[0.1] * 4]) + 5
    source = MappedSource(Clock(10, np.arange(STEPS) / 10 + 0.004, slow_in_the_middle))
    samples = samples_of(HALF_A_SECOND, source)
    assert shown(samples, 0, 7) == [2, 7], "a clock that is regular but for rounding"
    assert [shown(samples, 1, step)[0] for step in (7, 8, 9, 10)] == [4, 5, 5, 6], "at 0.5, 0.6, 0.7 and 0.8 s"
    assert shown(samples, 1, 4) == [0, 4], "0.4 - 0.5 s is before the start"
    fewer = samples_of(HALF_A_SECOND, source, repeats_start=False)
    assert [shown(fewer, 1, step) for step in (4, 5)] == [[4], [2, 5]]


def test_world_model_samples_see_the_same_moments_or_count_steps_of_their_own() -> None:
    same = samples_of(HALF_A_SECOND, Clock(10, None), kind="world_model")
    assert shown(same, 0, 7) == [2, 7, 8], "what is predicted is the next step"
    own = samples_of(HALF_A_SECOND, Clock(10, None), kind="world_model", world_history=3)
    assert shown(own, 0, 7) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("deltas", "fps", "message"),
    [
        ((-0.5, 0.0), 15, r"robot has 15 steps a second, and none 0.5 s before .* at -0.533333 and -0.466667 \(or set"),
        ((-0.033, 0.0), 30, "none 0.033 s before another; the nearest are at -0.0333333 and 0 "),
        ((-0.52, -0.5, 0.0), 10, "none 0.52 s before"),
    ],
)
def test_a_delta_at_which_there_is_no_step_is_told_with_the_nearest(deltas, fps: float, message: str) -> None:
    source = Clock(fps, None)
    with pytest.raises(DataError, match=f"^data.history_deltas: .*{message}"):
        DeltaSteps.of(source, EpisodeList.of(source.episodes()), Deltas(deltas))


def test_a_tolerance_takes_the_nearest_step_but_no_step_twice() -> None:
    assert Deltas((-0.0333, 0.0)).steps_back(30, place="it") == (1, 0)
    assert Deltas((-0.5, 0.0), tolerance_s=0.04).steps_back(15, place="it") == (8, 0)
    with pytest.raises(DataError, match=r"-0.52 and -0.5 s are the same step at the 10 steps a second of it$"):
        Deltas((-0.52, -0.5, 0.0), tolerance_s=0.04).steps_back(10, place="it")


@pytest.mark.parametrize(
    ("clock", "message"),
    [
        (
            np.r_[np.arange(6), np.arange(10, 16)] / 10,
            "episode 0: no step within 0.1 s of 0.5 s before step 8; of 2 such",
        ),
        (np.r_[np.arange(6), np.arange(6)] / 10, "episode 0: its timestamps do not grow"),
        (np.full(STEPS, np.nan), "episode 0: its timestamps do not grow"),
        (np.arange(STEPS - 1) / 5, "episode 0 has 12 steps but 11 timestamps"),
    ],
)
def test_timestamps_that_do_not_fit_name_their_episode(clock: np.ndarray, message: str) -> None:
    source = Clock(10, clock)
    with pytest.raises(DataError, match=f"robot: {message}"):
        DeltaSteps.of(source, EpisodeList.of(source.episodes()), HALF_A_SECOND)

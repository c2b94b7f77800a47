"""What is wrong with demonstrations is named: where, how many, and what to do."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from toy_source import ToySource

from vlatrack.data.checks.episodes import Needs, check_episodes, is_placeholder, records_of
from vlatrack.data.checks.finding import Finding, some, verdict
from vlatrack.data.checks.orientation import TURNS, check_orientation, orientation
from vlatrack.data.checks.scan import scan_dataset, scan_frames
from vlatrack.data.checks.splits import check_splits
from vlatrack.data.checks.times import check_times
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.errors import DataError

NEEDS = Needs(horizon=3, kinds=("vla",))


def found_in(episodes: Sequence[Episode], needs: Needs = NEEDS) -> list[Finding]:
    return list(check_episodes("demos", records_of(episodes), needs))


def found_between(train: ToySource, chosen: slice, held_out: ToySource, others: slice, name: str = "val_ind") -> list:
    splits = {"train": (train, train.episodes()[chosen]), name: (held_out, held_out.episodes()[others])}
    return check_splits(splits, train="train", needs=NEEDS, cameras=["front"])


class Pictures(ToySource):
    """The toy with other frames of some episodes."""

    def __init__(self, changes: dict) -> None:
        super().__init__()
        self._changes = changes

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        frames = super().frames(episode, camera)
        return self._changes[episode.index](frames) if episode.index in self._changes else frames


class Patchy(ToySource):
    """The toy, of which some episodes cannot be read."""

    def readable_episodes(self, on_bad):
        for episode in self.episodes():
            if episode.index in (2, 5):
                on_bad(episode.index, DataError(f"toy: episode {episode.index}: damaged; restore the file"))
            else:
                yield episode


def test_good_episodes_have_no_finding() -> None:
    assert found_in(ToySource().episodes()) == []
    assert found_between(ToySource(), slice(0, 8), ToySource(), slice(8, 10)) == []


def test_validation_episodes_that_are_trained_on_are_an_error() -> None:
    (found,) = found_between(ToySource(), slice(0, 10), ToySource(), slice(9, 10))
    assert (found.severity, found.check, found.count) == ("error", "overlap", 1)
    assert found.where == "data.val_ind, episode 9"
    assert found.message == "1 of 1 episode also in data.train"
    assert "part: all_but_last_tenth" in found.remedy


def test_a_copy_of_training_episodes_in_another_dataset_is_found_by_its_content() -> None:
    other = ToySource(episodes=10, reverse=True, changed_frame=2)
    assert other.fingerprint() != ToySource().fingerprint()
    (found,) = found_between(ToySource(), slice(0, 10), other, slice(0, 10))
    assert (found.check, found.count) == ("overlap", 10)
    assert found.remedy.endswith("leave them out of data.train")


def test_the_same_place_in_the_same_dataset_is_found_whatever_is_read_of_it() -> None:
    class Stateless(ToySource):
        def episodes(self) -> list[Episode]:
            return [replace(episode, states=None) for episode in super().episodes()]

    (found,) = found_between(ToySource(), slice(0, 10), Stateless(), slice(8, 10))
    assert (found.check, found.count) == ("overlap", 2)


def test_tasks_in_the_wrong_validation_split_are_a_warning() -> None:
    toy = ToySource()
    (found,) = found_between(toy, slice(0, 8), toy, slice(8, 10), "val_ood")
    assert (found.severity, found.message) == ("warning", "1 task trained on ('push the square')")
    (found,) = found_between(toy, slice(0, 8), toy, slice(10, 12), "val_ind")
    assert found.message == "1 task not trained on ('pull the square')"


def test_datasets_of_another_rate_are_a_warning() -> None:
    faster = ToySource(shift=0.1)
    faster.fps = 30.0
    (found,) = found_between(ToySource(), slice(0, 8), faster, slice(8, 10))
    assert (found.check, found.message) == ("fps", "steps a second differ: 10 in data.train, 30 in data.val_ind")


def test_episodes_that_give_no_sample_are_counted_and_listed() -> None:
    episodes = ToySource().episodes()
    cut = [
        replace(e, actions=e.actions[:2], states=e.states[:2]) if e.index in (1, 4) and e.states is not None else e
        for e in episodes
    ]
    (found,) = found_in(cut)
    assert (found.severity, found.check, found.count) == ("warning", "too short", 2)
    assert found.where == "demos, episodes 1, 4"
    assert found.message == "2 episodes of 12 shorter than 3 steps"
    assert found_in(cut, Needs(horizon=3, kinds=("vla", "world_model"))) == [], "two steps are a world-model sample"
    (found,) = found_in(episodes, Needs(horizon=15, kinds=("vla",)))
    assert (found.severity, found.check) == ("error", "no samples")
    (found,) = found_in([])
    assert (found.severity, found.message) == ("error", "no episode")


def test_duplicates_and_nan_are_found() -> None:
    episodes = ToySource().episodes()
    episodes.append(replace(episodes[3], index=12))
    episodes[7].actions[2, 0] = np.nan
    bad, twice = found_in(episodes)
    assert (bad.severity, bad.check, bad.where) == ("error", "not finite", "demos, episode 7")
    assert (twice.severity, twice.check, twice.count) == ("warning", "duplicates", 1)
    assert "12 as 3" in twice.remedy


@pytest.mark.parametrize("task", ["", "  ", "task_0", "Task 12", "episode-3", "n/a", "None", "unknown", "7"])
def test_an_instruction_that_says_nothing_is_none(task: str) -> None:
    assert is_placeholder(task)
    (found,) = found_in([replace(episode, task=task) for episode in ToySource().episodes()])
    assert (found.severity, found.check, found.count) == ("warning", "instruction", 12)


def test_instructions_are_no_placeholders() -> None:
    assert not any(
        map(is_placeholder, ("push the square", "task lamp off", "test the switch", "open", "none of the cups"))
    )


def test_two_spellings_of_a_task_are_told() -> None:
    episodes = ToySource().episodes()
    (found,) = found_in([*episodes[:10], replace(episodes[11], task="Push the  square.")])
    assert (found.check, found.count) == ("spelling", 1)
    assert "'Push the  square.' / 'push the square'" in found.message


def test_black_flat_and_frozen_cameras_are_found_among_good_ones() -> None:
    toy = Pictures(
        {
            1: lambda frames: frames // 20,
            4: lambda frames: np.full_like(frames, (90, 120, 200)),
            6: lambda frames: np.broadcast_to(frames[:1], frames.shape),
            8: lambda frames: frames[:5],
        }
    )
    episodes = toy.episodes()
    missing, black, flat, frozen = scan_frames(toy, episodes, ["front"], where="demos", total=168)
    assert "14 actions but 5 frames of front" in missing.message
    assert missing.remedy == "leave this episode out"
    assert (black.where, black.message) == ("demos, front, episode 1", "all frames are black in 1 episode of 11")
    assert (flat.where, flat.message) == ("demos, front, episode 4", "all frames are of one colour in 1 episode of 11")
    assert (frozen.check, frozen.where, frozen.severity) == ("frozen camera", "demos, front, episodes 6, 10", "warning")
    assert (missing.severity, black.severity, flat.severity) == ("error", "error", "error")


def test_bad_episodes_are_listed_and_the_others_are_read() -> None:
    scan = scan_dataset(Patchy(), skip_bad=True)
    assert [finding.where for finding in scan.bad] == ["toy, episode 2", "toy, episode 5"]
    assert scan.statistics.episodes == len(scan.records) == 10
    with pytest.raises(DataError, match="episode 2: damaged"):
        scan_dataset(Patchy(), skip_bad=False)


@pytest.mark.parametrize("turn", TURNS)
def test_how_images_are_turned_is_seen_beside_a_rendering(turn: str) -> None:
    generator = np.random.default_rng(0)
    scene = np.kron(generator.integers(0, 256, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    noisy = np.clip(scene + generator.normal(0, 30, scene.shape), 0, 255).astype(np.uint8)
    noisy[40:70, 20:60] = 255  # an object lies elsewhere
    seen = orientation([TURNS[turn](noisy)], scene[::2, ::2])
    assert seen.turn == turn
    assert seen.is_sure
    assert not orientation([generator.integers(0, 256, scene.shape).astype(np.uint8)], scene).is_sure


def test_images_that_are_not_as_the_experiment_says_are_an_error_else_a_warning() -> None:
    scene = np.kron(np.random.default_rng(1).integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    seen = orientation([scene[::-1]], scene)
    assert list(check_orientation("demos", seen, "upside down")) == []
    (found,) = check_orientation("demos", seen, "mirrored")
    assert (found.severity, found.check) == ("error", "orientation")
    assert found.message.startswith("images are upside down, by data.recorded.rotation they are mirrored")
    (found,) = check_orientation("demos", seen, None)
    assert (found.severity, found.message[:23]) == ("warning", "images are upside down,")
    (found,) = check_orientation("demos", orientation([scene], scene[:, ::-1].transpose(1, 0, 2)), None)
    assert found.message.startswith("first images do not look like what the simulator renders")


def test_timestamps_that_disagree_with_the_rate_are_found() -> None:
    steady = np.arange(20) / 10
    times = [(0, steady), (1, steady / 2), (2, steady[::-1]), (3, np.delete(steady, [4, 9])), (4, steady[:1])]
    rate, order, gaps = check_times("demos", 10.0, times)
    assert (rate.severity, rate.check, rate.where) == ("error", "fps", "demos, episode 1")
    assert rate.message == "1 episode with 20 steps a second by the timestamps, not 10"
    assert (order.severity, order.where) == ("error", "demos, episode 2")
    assert (gaps.severity, gaps.where) == ("warning", "demos, episode 3")
    assert gaps.message == "1 episode with 2 gaps of more than 1.5 steps"


def test_times_of_a_lerobot_dataset_are_read_by_episode() -> None:
    dataset = LeRobotDataset("tests/data/fixtures/lerobot-v3-video")
    times = dict(dataset.step_times())
    assert {episode: len(seconds) for episode, seconds in times.items()} == {0: 97, 1: 96, 2: 95}
    assert list(check_times("demos", dataset.fps, times.items())) == []
    (found,) = check_times("demos", 2 * dataset.fps, times.items())
    assert found.message == "3 episodes with 80 steps a second by the timestamps, not 160"


def test_a_verdict_counts_errors_and_warnings() -> None:
    error, warning = Finding("error", "a", "b", "c", "d"), Finding("warning", "a", "b", "c", "d")
    assert verdict([]) == "no error, no warning"
    assert verdict([warning, error, warning]) == "1 error, 2 warnings"
    assert some(range(9)) == "0, 1, 2, 3, 4 and 4 more"

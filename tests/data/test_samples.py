"""Episodes as samples, and the order of batches."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.data.episodes import Episode, checked_frames
from vlatrack.data.loading import batches_by_group
from vlatrack.data.order import epoch_order, even_subset
from vlatrack.data.samples import Encoding, SampleSet, check_lengths
from vlatrack.data.selection import select_episodes
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError, TokenError
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer

LAYOUT = TokenLayout()
STEPS, HORIZON = 6, 2


class Source:
    """Frames of one colour: the step's number."""

    name, cameras, action_dim, state_dim, fps = "source", ("front", "wrist"), 1, 0, 10.0

    def __init__(self, frames: int = STEPS) -> None:
        actions = np.linspace(-1, 1, STEPS, dtype=np.float32)[:, None]
        self._episodes, self._frames = [Episode(0, "push", actions, None)], frames

    def episodes(self) -> list[Episode]:
        return self._episodes

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        base = np.arange(self._frames, dtype=np.uint8) + (100 if camera == "wrist" else 0)
        return np.broadcast_to(base[:, None, None, None], (self._frames, 4, 4, 3))

    def fingerprint(self) -> str:
        return "f" * 64


class ColourEncoder:
    """An image's codes are its colour; counts the images that it was asked to encode."""

    codes_per_side = 2

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, frames: np.ndarray) -> np.ndarray:
        self.encoded += len(frames)
        return np.broadcast_to(1000 + frames[:, :1, :1, 0].astype(np.int64), (len(frames), 2, 2))

    def fingerprint(self) -> str:
        return "e" * 64


def _encoding(
    *, history: int = 1, images: ColourEncoder | None = None, max_length: int = 400, repeats_start: bool = True
) -> Encoding:
    return Encoding(
        layout=LAYOUT,
        bins=Bins(8),
        action_range=ValueRange((-1.0,), (1.0,)),
        state_range=None,
        text=ByteTokenizer(LAYOUT),
        images=images or ColourEncoder(),
        cameras=("front", "wrist"),
        history=history,
        horizon=HORIZON,
        max_length=max_length,
        repeats_start=repeats_start,
    )


def _samples(folder: Path, encoding: Encoding, *kinds: str, every: int = 1) -> SampleSet:
    store = TokenStore(folder)
    dataset = store.dataset(Source())
    episodes = dataset.table.all()
    codes = [
        store.codes(dataset, episodes, camera, encoding.images, first_id=LAYOUT.first_image_code)
        for camera in encoding.cameras
    ]
    return SampleSet(episodes, codes, encoding, kinds, every=every)


def _images_in(sequence) -> list[int]:
    """The colour of each image of a sequence, in order."""
    starts = np.flatnonzero(sequence.input_ids == LAYOUT.image_start)
    return [int(sequence.input_ids[start + 3]) - 1000 for start in starts]


def test_there_is_a_vla_sample_for_every_complete_chunk(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla")
    assert len(samples) == STEPS - HORIZON + 1
    assert [_images_in(samples[i]) for i in range(len(samples))] == [[i, 100 + i] for i in range(5)]


def test_history_is_oldest_first_and_repeats_the_first_step_before_the_start(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(history=3), "vla")
    assert _images_in(samples[0]) == [0, 100, 0, 100, 0, 100]
    assert _images_in(samples[4]) == [2, 102, 3, 103, 4, 104]


def test_a_history_that_is_shorter_at_the_start_leaves_earlier_steps_out(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(history=3, repeats_start=False), "vla", "world_model")
    assert [_images_in(samples[number]) for number in range(3)] == [
        [0, 100],
        [0, 100, 1, 101],
        [0, 100, 1, 101, 2, 102],
    ]
    assert _images_in(samples[4]) == [2, 102, 3, 103, 4, 104]
    first_of_world_model = samples[STEPS - HORIZON + 1]
    assert _images_in(first_of_world_model) == [0, 100, 1, 101], "one step of history, and what comes next"


def test_the_longest_sample_decides_whether_all_fit(tmp_path) -> None:
    encoding = _encoding(history=3, repeats_start=False)
    samples = _samples(tmp_path, encoding, "vla")
    longest = max(len(samples[number].input_ids) for number in range(len(samples)))
    assert len(samples.longest("vla").input_ids) == longest > len(samples[0].input_ids)
    check_lengths(EpisodeList.of(Source().episodes()), replace(encoding, max_length=longest), ["vla"])
    with pytest.raises(TokenError, match=f"a sample has {longest} tokens"):
        check_lengths(EpisodeList.of(Source().episodes()), replace(encoding, max_length=longest - 1), ["vla"])


def test_the_world_model_sees_images_and_an_action_and_is_asked_for_the_next_images(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "world_model")
    assert len(samples) == STEPS - 1
    sequence = samples[2]
    assert _images_in(sequence) == [2, 102, 3, 103]
    asked = sequence.labels != -100
    assert (sequence.input_ids[asked] == LAYOUT.image_start).sum() == 2
    assert sequence.actions is None


@pytest.mark.parametrize("repeats_start", [True, False])
def test_the_length_of_a_sample_is_known_without_making_it(tmp_path, repeats_start: bool) -> None:
    samples = _samples(tmp_path, _encoding(history=3, repeats_start=repeats_start), "vla", "world_model")
    lengths = samples.lengths_of(np.arange(len(samples))).tolist()
    assert lengths == [len(samples[number].input_ids) for number in range(len(samples))]
    assert len(set(lengths)) == (2 if repeats_start else 6)


def test_samples_can_start_at_every_nth_step(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla", every=2)
    assert [_images_in(samples[i])[0] for i in range(len(samples))] == [0, 2, 4]


def test_an_episode_with_too_few_frames_is_named(tmp_path) -> None:
    store = TokenStore(tmp_path)
    dataset = store.dataset(Source(frames=STEPS - 1))
    with pytest.raises(DataError, match="episode 0 has 6 actions but 5 frames of front"):
        store.encode(dataset, dataset.table.all(), "front", ColourEncoder(), first_id=0)


def test_a_prompt_that_is_too_long_is_noticed_without_encoding_an_image() -> None:
    images = ColourEncoder()
    with pytest.raises(TokenError, match="max_seq_len is 60"):
        check_lengths(
            EpisodeList.of(Source().episodes()), _encoding(images=images, max_length=60), ("vla", "world_model")
        )
    assert images.encoded == 0


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(samples, batch_size, seed, epoch) -> None:
    order = epoch_order(samples, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(number for batch in order for number in batch) == list(range(samples))
    assert {len(batch) for batch in order[:-1]} <= {batch_size}
    again = epoch_order(samples, batch_size=batch_size, seed=seed, epoch=epoch)
    assert np.array_equal(order.samples, again.samples)


def test_two_epochs_have_different_orders() -> None:
    first, second = (epoch_order(50, batch_size=8, seed=0, epoch=epoch) for epoch in (0, 1))
    assert not np.array_equal(first.samples, second.samples)


@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 120))
def test_an_even_subset_is_spread_over_all_samples(samples, batch_size, limit) -> None:
    numbers = [number for batch in even_subset(samples, batch_size=batch_size, limit=limit) for number in batch]
    assert len(numbers) == min(samples, limit) == len(set(numbers))
    assert numbers == sorted(numbers)
    if len(numbers) > 1:
        assert (numbers[0], numbers[-1]) == (0, samples - 1)


def test_batches_by_group_keep_every_sample_in_its_order() -> None:
    found = batches_by_group([0, 1, 3, 4, 7, 9], lambda number: "even" if number % 2 == 0 else "odd", batch_size=3)
    assert found == {"even": [[0, 4]], "odd": [[1, 3, 7], [9]]}
    assert list(batches_by_group([1, 0], str, batch_size=1)) == ["1", "0"]


def test_the_samples_of_another_kind_are_those_of_the_same_episodes(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla")
    images = samples.of_kind("world_model")
    assert [images.place(number) for number in range(len(images))] == [(0, step) for step in range(STEPS - 1)]
    assert (images[2].input_ids == images.at("world_model", 0, 2).input_ids).all()
    assert (images.codes(0, 2)[:, 0, 0] == [1002, 1102]).all()  # front and wrist
    assert (samples[1].prompt == samples[1].input_ids[: len(samples[1].prompt)]).all()
    assert samples.episodes[0].task == "push"


def test_an_action_that_is_not_a_number_is_named_before_it_becomes_a_bin(tmp_path: Path) -> None:
    source = Source()
    source.episodes()[0].actions[3] = np.nan
    table = TokenStore(tmp_path).dataset(source).table
    with pytest.raises(DataError, match=r"^source: actions of episode 0 hold NaN or infinity; leave it out, or all"):
        select_episodes(table)
    with pytest.raises(DataError, match=r"^source: no episode is left"):
        select_episodes(table, skip_bad=True)


@pytest.mark.parametrize("length_multiple", [1, 64])
@pytest.mark.parametrize("repeats_start", [True, False])
def test_a_batch_is_what_collate_makes_of_its_samples(tmp_path, repeats_start: bool, length_multiple: int) -> None:
    encoding = _encoding(history=3, repeats_start=repeats_start)
    samples = _samples(tmp_path, encoding, "vla", "world_model")
    for numbers in ([0, 9, 3, 1, 7, 4], [2], [9, 8], []):
        found = samples.batch(numbers, length_multiple=length_multiple)
        expected = collate([samples[number] for number in numbers], LAYOUT, length_multiple=length_multiple)
        for field in fields(Batch):
            value, wanted = getattr(found, field.name), getattr(expected, field.name)
            assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted, field.name
            assert getattr(value, "dtype", None) == getattr(wanted, "dtype", None), field.name


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (np.zeros((STEPS, 32, 32, 3)), r"float64 \[6, 32, 32, 3\]"),
        (np.zeros((STEPS, 32, 32), np.uint8), r"uint8 \[6, 32, 32\]"),
    ],
)
def test_frames_that_are_no_images_are_named_with_what_they_are(monkeypatch, frames: np.ndarray, found: str) -> None:
    source = Source()
    monkeypatch.setattr(source, "frames", lambda episode, camera: frames)
    with pytest.raises(DataError, match=f"^source: episode 0: frames of front are {found}, expected uint8"):
        checked_frames(source, source.episodes()[0], "front")

"""Episodes as samples, the cache of image codes, and the order of batches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.data.cache import CodeCache
from vlatrack.data.episodes import Episode
from vlatrack.data.loading import epoch_order, even_subset
from vlatrack.data.samples import Encoding, SampleSet, check_lengths, encode_episodes
from vlatrack.data.statistics import value_range
from vlatrack.errors import DataError, TokenError
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer

LAYOUT = TokenLayout()
STEPS, HORIZON = 6, 2


class Source:
    """Pictures of one colour: the step's number."""

    name, cameras, action_dim, state_dim, fps = "source", ("front", "wrist"), 1, 0, 10.0

    def __init__(self, pictures: int = STEPS) -> None:
        actions = np.linspace(-1, 1, STEPS, dtype=np.float32)[:, None]
        self._episodes, self._pictures = [Episode(0, "push", actions, None)], pictures

    def episodes(self) -> list[Episode]:
        return self._episodes

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        base = np.arange(self._pictures, dtype=np.uint8) + (100 if camera == "wrist" else 0)
        return np.broadcast_to(base[:, None, None, None], (self._pictures, 4, 4, 3))

    def fingerprint(self) -> str:
        return "f" * 64


class ColourEncoder:
    """A picture's codes are its colour; counts the pictures that it was asked to encode."""

    codes_per_side = 2

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, frames: np.ndarray) -> np.ndarray:
        self.encoded += len(frames)
        return np.broadcast_to(1000 + frames[:, :1, :1, 0].astype(np.int64), (len(frames), 2, 2))

    def fingerprint(self) -> str:
        return "e" * 64


def _encoding(*, history: int = 1, images: ColourEncoder | None = None, max_length: int = 400) -> Encoding:
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
    )


def _samples(folder: Path, encoding: Encoding, *kinds: str, every: int = 1) -> SampleSet:
    source = Source()
    return SampleSet(
        encode_episodes(source, source.episodes(), encoding, CodeCache(folder)), encoding, kinds, every=every
    )


def _pictures_in(sequence) -> list[int]:
    """The colour of each picture of a sequence, in order."""
    starts = np.flatnonzero(sequence.input_ids == LAYOUT.image_start)
    return [int(sequence.input_ids[start + 3]) - 1000 for start in starts]


def test_there_is_a_vla_sample_for_every_complete_chunk(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla")
    assert len(samples) == STEPS - HORIZON + 1
    assert [_pictures_in(samples[i]) for i in range(len(samples))] == [[i, 100 + i] for i in range(5)]


def test_history_is_oldest_first_and_repeats_the_first_step_before_the_start(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(history=3), "vla")
    assert _pictures_in(samples[0]) == [0, 100, 0, 100, 0, 100]
    assert _pictures_in(samples[4]) == [2, 102, 3, 103, 4, 104]


def test_the_world_model_sees_pictures_and_action_and_is_asked_for_the_next_pictures(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "world_model")
    assert len(samples) == STEPS - 1
    sequence = samples[2]
    assert _pictures_in(sequence) == [2, 102, 3, 103]
    asked = sequence.labels != -100
    assert (sequence.input_ids[asked] == LAYOUT.image_start).sum() == 2
    assert sequence.actions is None


def test_samples_can_start_at_every_nth_step(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla", every=2)
    assert [_pictures_in(samples[i])[0] for i in range(len(samples))] == [0, 2, 4]


def test_pictures_are_encoded_once_and_read_from_the_cache_after_that(tmp_path) -> None:
    first, second = ColourEncoder(), ColourEncoder()
    before = _samples(tmp_path, _encoding(images=first), "vla")
    after = _samples(tmp_path, _encoding(images=second), "vla")
    assert (first.encoded, second.encoded) == (2 * STEPS, 0)
    assert np.array_equal(before[3].input_ids, after[3].input_ids)
    assert not list(tmp_path.glob("*.partial"))


def test_an_episode_with_too_few_pictures_is_named(tmp_path) -> None:
    source = Source(pictures=STEPS - 1)
    with pytest.raises(DataError, match="episode 0 has 6 actions but 5 pictures of front"):
        encode_episodes(source, source.episodes(), _encoding(), CodeCache(tmp_path))


def test_a_prompt_that_is_too_long_is_noticed_without_encoding_a_picture() -> None:
    images = ColourEncoder()
    with pytest.raises(TokenError, match="max_seq_len is 60"):
        check_lengths(Source().episodes(), _encoding(images=images, max_length=60), ("vla", "world_model"))
    assert images.encoded == 0


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(samples, batch_size, seed, epoch) -> None:
    order = epoch_order(samples, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(number for batch in order for number in batch) == list(range(samples))
    assert {len(batch) for batch in order[:-1]} <= {batch_size}
    assert order == epoch_order(samples, batch_size=batch_size, seed=seed, epoch=epoch)


def test_two_epochs_have_different_orders() -> None:
    first, second = (epoch_order(50, batch_size=8, seed=0, epoch=epoch) for epoch in (0, 1))
    assert first != second


@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 120))
def test_an_even_subset_is_spread_over_all_samples(samples, batch_size, limit) -> None:
    numbers = [number for batch in even_subset(samples, batch_size=batch_size, limit=limit) for number in batch]
    assert len(numbers) == min(samples, limit) == len(set(numbers))
    assert numbers == sorted(numbers)
    if len(numbers) > 1:
        assert (numbers[0], numbers[-1]) == (0, samples - 1)


def test_ranges_are_extremes_or_quantiles_and_refuse_nan() -> None:
    values = [np.arange(101, dtype=np.float32)[:, None]]
    assert value_range(values, "minmax") == ValueRange((0.0,), (100.0,))
    assert value_range(values, "quantiles") == ValueRange((1.0,), (99.0,))
    with pytest.raises(DataError, match=r"NaN or infinite values in dimension \[0\]"):
        value_range([*values, np.asarray([[np.nan]], np.float32)], "minmax")

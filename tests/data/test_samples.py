"""Episodes as samples, the cache of image codes, and the order of batches."""

import errno
import fcntl
import hashlib
import os
import resource
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatrack.data.cache import CodeCache
from vlatrack.data.episodes import Episode, checked_frames
from vlatrack.data.loading import batches_by_group, epoch_order, even_subset
from vlatrack.data.samples import Encoding, SampleSet, check_fit, check_lengths, encode_episodes
from vlatrack.errors import DataError, TokenError
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
    source = Source()
    return SampleSet(
        encode_episodes(source, source.episodes(), encoding, CodeCache(folder)), encoding, kinds, every=every
    )


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
    check_lengths(Source().episodes(), replace(encoding, max_length=longest), ["vla"])
    with pytest.raises(TokenError, match=f"a sample has {longest} tokens"):
        check_lengths(Source().episodes(), replace(encoding, max_length=longest - 1), ["vla"])


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
    lengths = [samples.length_of(number) for number in range(len(samples))]
    assert lengths == [len(samples[number].input_ids) for number in range(len(samples))]
    assert len(set(lengths)) == (2 if repeats_start else 6)


def test_samples_can_start_at_every_nth_step(tmp_path) -> None:
    samples = _samples(tmp_path, _encoding(), "vla", every=2)
    assert [_images_in(samples[i])[0] for i in range(len(samples))] == [0, 2, 4]


def test_frames_are_encoded_once_and_read_from_the_cache_after_that(tmp_path) -> None:
    first, second = ColourEncoder(), ColourEncoder()
    before = _samples(tmp_path, _encoding(images=first), "vla")
    after = _samples(tmp_path, _encoding(images=second), "vla")
    assert (first.encoded, second.encoded) == (2 * STEPS, 0)
    assert np.array_equal(before[3].input_ids, after[3].input_ids)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "one bit", "of an earlier version", "of fewer episodes"])
def test_a_damaged_file_of_the_cache_is_written_anew(tmp_path: Path, damage: str) -> None:
    before = _samples(tmp_path, _encoding(), "vla")
    for file in tmp_path.glob("*.arrow"):
        whole = file.read_bytes()
        content = {
            "cut": whole[:-100],
            "empty": b"",
            "text": b"not an Arrow file",
            "one bit": whole[:400] + bytes([whole[400] ^ 1]) + whole[401:],
            "of an earlier version": whole[:-32],
        }.get(damage)
        if content is None:
            fewer = pa.BufferOutputStream()
            with pa.ipc.new_file(fewer, pa.schema([("codes", pa.int32())])):
                pass
            content = fewer.getvalue().to_pybytes()
            content += hashlib.sha256(content).digest()
        file.write_bytes(content)
    images = ColourEncoder()
    after = _samples(tmp_path, _encoding(images=images), "vla")
    assert images.encoded == 2 * STEPS
    assert np.array_equal(before[3].input_ids, after[3].input_ids)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"codes: image codes cannot be written \(File exists\); free space or") as told:
        _samples(tmp_path / "codes", _encoding(), "vla")
    assert "\n" not in str(told.value)


def test_a_disk_that_fills_up_while_codes_are_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(DataError, match=r"image codes cannot be written \(File too large\)"):
            _samples(tmp_path, _encoding(), "vla")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_unfinished_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    killed = tmp_path / f"a.{socket.gethostname()}.17.partial"
    written = tmp_path / f"b.{socket.gethostname()}.17.partial"  # the pid of another container
    elsewhere = tmp_path / "c.elsewhere.17.partial"
    new = tmp_path / f"d.{socket.gethostname()}.17.partial"
    abandoned = tmp_path / "e.17.partial"
    for file in (killed, written, elsewhere, new, abandoned):
        file.write_text("half")
    a_minute_ago = time.time() - 60
    for file in (killed, written, elsewhere):
        os.utime(file, (a_minute_ago, a_minute_ago))
    os.utime(abandoned, (0, 0))
    with written.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _samples(tmp_path, _encoding(), "vla")
    assert set(tmp_path.glob("*.partial")) == {written, elsewhere, new}


def test_a_file_that_another_run_finishes_meanwhile_does_no_harm(tmp_path: Path, monkeypatch) -> None:
    gone = tmp_path / f"a.{socket.gethostname()}.17.partial"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([gone]))
    images = ColourEncoder()
    assert len(_samples(tmp_path, _encoding(images=images), "vla")) == STEPS - HORIZON + 1
    assert images.encoded == 2 * STEPS


def test_a_file_that_is_locked_is_kept_however_old_it_is(tmp_path: Path) -> None:
    written = tmp_path / f"a.{socket.gethostname()}.17.partial"
    with written.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        os.utime(written, (0, 0))
        _samples(tmp_path, _encoding(), "vla")
    assert written.exists()


def test_where_there_are_no_locks_the_age_of_a_file_tells_whether_it_is_abandoned(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    written, abandoned = (tmp_path / f"{name}.{socket.gethostname()}.17.partial" for name in "ab")
    for file, changed in ((written, time.time() - 60), (abandoned, 0)):
        file.write_text("half")
        os.utime(file, (changed, changed))
    _samples(tmp_path, _encoding(), "vla")
    assert list(tmp_path.glob("*.partial")) == [written]


def test_two_writers_of_the_same_pid_and_host_name_do_not_share_a_file(tmp_path: Path) -> None:
    """As in two containers: the second writes the same codes while the first is at it."""

    class Slow(ColourEncoder):
        def encode(self, frames: np.ndarray) -> np.ndarray:
            if not self.encoded:
                _samples(tmp_path, _encoding(images=other), "vla")
                written.extend(tmp_path.glob("*.partial"))
            return super().encode(frames)

    first, other, written = Slow(), ColourEncoder(), []
    samples = _samples(tmp_path, _encoding(images=first), "vla")
    assert len(written) == 1, "the file of the first is still there when the second has finished"
    assert _images_in(samples[4]) == [4, 104]


def test_what_another_user_left_unfinished_does_no_harm(tmp_path: Path, monkeypatch) -> None:
    left = tmp_path / f"a.{socket.gethostname()}.17.partial"
    left.write_text("half")
    os.utime(left, (0, 0))

    def refuse(file: Path, *rest: int) -> int:
        if file == left:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return os_open(file, *rest)

    os_open = os.open
    monkeypatch.setattr(os, "open", refuse)  # file permissions refuse nothing to root
    _samples(tmp_path, _encoding(), "vla")
    assert left.exists()


def test_an_episode_with_too_few_frames_is_named(tmp_path) -> None:
    source = Source(frames=STEPS - 1)
    with pytest.raises(DataError, match="episode 0 has 6 actions but 5 frames of front"):
        encode_episodes(source, source.episodes(), _encoding(), CodeCache(tmp_path))


def test_a_prompt_that_is_too_long_is_noticed_without_encoding_an_image() -> None:
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


def test_an_action_that_is_not_a_number_is_named_before_it_becomes_a_bin() -> None:
    source = Source()
    source.episodes()[0].actions[3] = np.nan
    with pytest.raises(DataError, match=r"^source: actions of episode 0 hold NaN or infinity; leave it out$"):
        check_fit(source, source.episodes(), cameras=("front",), action_dim=1, state_dim=None, horizon=HORIZON)


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

"""Images that are encoded while a policy trains: the same ids as from the store, or fresh changes of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from same_batches import assert_same_batches

from vlatrack.data.augmentation import Augmentation
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.loading import load_batches
from vlatrack.data.order import EpochOrders
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.data.streamed_frames import SHOWINGS, StreamedFrames
from vlatrack.data.streaming import Pixels, StreamedSamples
from vlatrack.data.video import OpenVideos, stream_video
from vlatrack.errors import DataError
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer

LAYOUT, STEPS, EPISODES = TokenLayout(), 6, 3
VIDEO_DATA = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
CHANGES = Augmentation(crop=0.7, brightness=0.4)


class Source:
    """Squares of many colours; the second camera has larger images, and so has the last episode."""

    name, cameras, action_dim, state_dim, fps = "squares", ("front", "wrist"), 1, 0, 10.0

    def episodes(self) -> list[Episode]:
        actions = np.linspace(-1, 1, STEPS, dtype=np.float32)[:, None]
        return [Episode(index, f"push {'hard ' * index}", actions, None) for index in range(EPISODES)]

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        side = 40 if camera == "wrist" else 48 if episode.index == 2 else 32
        generator = np.random.default_rng([episode.index, self.cameras.index(camera)])
        colours = generator.integers(0, 256, (STEPS, 8, 8, 3), dtype=np.uint8)
        return np.kron(colours, np.ones((1, side // 8, side // 8, 1), np.uint8))

    def fingerprint(self) -> str:
        return "n" * 64


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    frames = np.concatenate([Source().frames(episode, "front") for episode in Source().episodes()[:2]])
    return Encoding(
        layout=LAYOUT,
        bins=Bins(8),
        action_range=ValueRange((-1.0,), (1.0,)),
        state_range=None,
        text=ByteTokenizer(LAYOUT),
        images=ImageTokenizer.fit(frames, image_size=32, codebook_size=32, seed=0, layout=LAYOUT),
        cameras=Source.cameras,
        history=2,
        horizon=2,
        max_length=400,
    )


@pytest.fixture
def dataset(tmp_path: Path) -> StoredDataset:
    return TokenStore(tmp_path / "store").dataset(Source())


def streamed(dataset: StoredDataset, encoding: Encoding, augmentation: Augmentation | None = None) -> StreamedSamples:
    episodes = dataset.table.all()
    frames = StreamedFrames([(dataset, episodes)], augmentation=augmentation)
    variants = 0 if augmentation is None else SHOWINGS
    return StreamedSamples(episodes, frames, encoding, ("vla", "world_model"), variants=variants)


def stored(dataset: StoredDataset, encoding: Encoding, folder: Path) -> SampleSet:
    store, episodes = TokenStore(folder), dataset.table.all()
    codes = [
        store.codes(dataset, episodes, camera, encoding.images, first_id=LAYOUT.first_image_code)
        for camera in encoding.cameras
    ]
    return SampleSet(episodes, codes, encoding, ("vla", "world_model"))


def batches(samples: SampleSet, order: EpochOrders, epoch: int, *, workers: int = 0) -> list[Batch]:
    return list(load_batches(samples, order.of(epoch), workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_samples_are_those_of_the_store(
    dataset: StoredDataset, encoding: Encoding, tmp_path: Path, workers: int
) -> None:
    of_store, samples = stored(dataset, encoding, tmp_path / "codes"), streamed(dataset, encoding)
    order = EpochOrders((len(samples),), 7, seed=1)
    for found, expected in zip(batches(samples, order, 0, workers=workers), batches(of_store, order, 0), strict=True):
        assert_same_batches(found, expected)
    assert_same_batches(samples.batch([]), of_store.batch([]))
    assert (samples[20].input_ids == of_store[20].input_ids).all()
    assert (samples.codes(2, 3) == of_store.codes(2, 3)).all()
    assert (samples.of_kind("world_model")[4].labels == of_store.of_kind("world_model")[4].labels).all()


def test_answer_images_whose_ids_have_no_weight_are_counted(
    dataset: StoredDataset, encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenLayout, "weighted_last", LAYOUT.first_image_code + 15)  # half of the codes
    of_store, samples = stored(dataset, encoding, tmp_path / "codes"), streamed(dataset, encoding)
    (found,) = load_batches(samples, [range(len(samples))])
    assert_same_batches(found, of_store.batch(range(len(samples))))


def test_each_showing_is_changed_anew_and_the_same_in_every_repetition(
    dataset: StoredDataset, encoding: Encoding
) -> None:
    plain, samples = streamed(dataset, encoding), streamed(dataset, encoding, CHANGES)
    order = EpochOrders((len(samples),), 7, seed=1, variants=SHOWINGS)
    first, second = batches(samples, order, 0), batches(samples, order, 1)
    for one, other in zip(first, batches(streamed(dataset, encoding, CHANGES), order, 0, workers=2), strict=True):
        assert_same_batches(one, other)
    resumed = list(load_batches(samples, order.of(1)[2:], workers=1))
    for one, other in zip(second[2:], resumed, strict=True):
        assert_same_batches(one, other)

    number = 8
    rows = []
    for epoch in range(4):
        shown = order.of(epoch).samples
        rows.append(samples[int(shown[shown % len(samples) == number][0])].input_ids)
    assert len({row.tobytes() for row in [*rows, plain[number].input_ids]}) == 5
    is_image = (rows[0] >= LAYOUT.first_image_code) & (rows[0] < LAYOUT.image_end)
    assert all((row[~is_image] == plain[number].input_ids[~is_image]).all() for row in rows)


def test_images_of_different_sizes_travel_in_one_tensor() -> None:
    images = [np.full((side, side + 1, 3), side, np.uint8) for side in (2, 2, 3, 2)]
    pixels = Pixels.of(images)
    assert pixels.sizes == ((2, 2, 3), (1, 3, 4), (1, 2, 3))
    assert [image.tolist() for part in pixels.parts() for image in part] == [image.tolist() for image in images]


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Path, StreamedFrames]:
    """A copy of a dataset with videos, and its frames."""
    root = Path(shutil.copytree(VIDEO_DATA, tmp_path / "demos"))
    dataset = TokenStore(tmp_path / "store").dataset(LeRobotDataset(root), reopen=lambda: LeRobotDataset(root))
    frames = StreamedFrames([(dataset, dataset.table.all())])
    frames.check_files(dataset.source.cameras)
    return next((root / "videos" / "observation.images.corner2").rglob("*.mp4")), frames


CAMERA = "observation.images.corner2"


def test_a_video_that_changes_meanwhile_is_named_with_the_episode(videos: tuple[Path, StreamedFrames]) -> None:
    file, frames = videos
    before = frames.read(1, CAMERA, np.array([2, 3]))
    file.chmod(0o600)  # which changes the file's times and nothing in it
    assert (frames.read(1, CAMERA, np.array([2, 3])) == before).all()
    other = file.with_suffix(".new")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    other.replace(file)
    with pytest.raises(DataError) as caught:
        frames.read(1, CAMERA, np.array([4]))
    message = str(caught.value)
    assert "changed while it was read (videos/observation.images.corner2/" in message
    assert "(episode 1, observation.images.corner2)" in message
    assert "\n" not in message


def test_frames_are_read_at_any_steps_in_any_order(videos: tuple[Path, StreamedFrames]) -> None:
    _, frames = videos
    whole, steps = frames.read(2, CAMERA, np.arange(95)), np.array([90, 3, 3, 5, 40])
    assert (frames.read(2, CAMERA, steps) == whole[steps]).all()


def test_a_missing_video_is_told_before_anything_is_read(videos: tuple[Path, StreamedFrames]) -> None:
    file, frames = videos
    file.unlink()
    with pytest.raises(DataError, match="no such video of episode 0"):
        frames.check_files([CAMERA])


def test_damage_that_a_worker_meets_is_one_line_with_the_episode(tmp_path: Path, encoding: Encoding) -> None:
    class Damaged(Source):
        def frames(self, episode: Episode, camera: str) -> np.ndarray:
            if episode.index == 2:
                raise DataError("squares: demo.mp4: damaged video; restore the file")
            return super().frames(episode, camera)

    samples = streamed(TokenStore(tmp_path / "store").dataset(Damaged()), encoding)
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            list(load_batches(samples, [[0, 1], [len(samples) - 1]], workers=workers))
        assert str(caught.value) == (
            "squares: demo.mp4: damaged video; restore the file (episode 2, front); "
            "vlatrack data validate --frames looks at all images before a run"
        )


def test_videos_that_stay_open_give_the_frames_of_those_that_are_opened_anew(
    videos: tuple[Path, StreamedFrames],
) -> None:
    file, _ = videos
    kept, generator = OpenVideos(1), np.random.default_rng(0)
    whole = np.concatenate([*stream_video(file, np.arange(12) / 80, fps=80)])
    for step in generator.permutation(12).tolist():
        (piece,) = stream_video(file, np.array([step / 80]), fps=80, videos=kept)
        assert (piece[0] == whole[step]).all(), step
    assert len(kept._free) == 1
    twin = Path(shutil.copy(file, file.with_name("twin.mp4")))
    (piece,) = stream_video(twin, np.array([3 / 80]), fps=80, videos=kept)
    assert (piece[0] == whole[3]).all()
    assert [path for path, _ in kept._free] == [twin]
    with pytest.raises(DataError, match="no such video"):
        list(stream_video(file.with_name("none.mp4"), np.array([3 / 80]), fps=80, videos=kept))


def test_a_forked_process_opens_videos_of_its_own() -> None:
    (file,) = (VIDEO_DATA / "videos" / CAMERA).rglob("*.mp4")
    program = (
        "import os, sys, numpy as np; from pathlib import Path; from vlatrack.data.video import *\n"
        "kept, file = OpenVideos(2), Path(sys.argv[1])\n"
        "read = lambda at: list(stream_video(file, np.array([at]), fps=80, videos=kept))\n"
        "read(0.5); child = os.fork()\n"
        "if not child: read(0.7); os._exit(0)\n"
        "read(0.2); sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program, file], timeout=60, env=environment).returncode == 0

"""The same demonstrations are the same tokens, whatever format they are in."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from lerobot_v21 import as_v21
from rlds_writer import episode_features, steps_of, write_rlds
from rynnvla_data import vla_conversations, write_records, write_trajectories
from same_batches import assert_same_batches

from vlatrack.data.convert import convert
from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.data.formats.robomimic import RobomimicDataset
from vlatrack.data.formats.rynnvla.records import Records
from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories
from vlatrack.data.loading import load_batches
from vlatrack.data.mixture import MixturePart, MixtureSource
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.token_store import TokenStore
from vlatrack.data.streamed_frames import StreamedFrames
from vlatrack.data.streaming import StreamedSamples
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer

LIBERO = Path(__file__).parent / "fixtures" / "libero-hdf5"
LAYOUT, HORIZON = TokenLayout(), 3
Rows = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def demonstrations() -> LiberoDataset:
    return LiberoDataset(LIBERO)


@pytest.fixture(scope="module")
def images(demonstrations: LiberoDataset) -> ImageTokenizer:
    """One for all, as a run has one."""
    frames = demonstrations.frames(demonstrations.episodes()[0], "agentview_rgb")
    return ImageTokenizer.fit(frames, image_size=32, codebook_size=16, seed=0, layout=LAYOUT)


def rows_of(source: EpisodeSource, images: ImageTokenizer, folder: Path) -> Rows:
    """All rows, VLA and world-model ones, of a dataset with its own statistics; streamed ones have to be the same."""
    store = TokenStore(folder)
    dataset = store.dataset(source)
    episodes = dataset.table.all()
    stats = NormStats.from_episodes(episodes, method="quantiles", use_state=True, name=source.name)
    encoding = Encoding(
        layout=LAYOUT,
        bins=Bins(),
        action_range=stats.actions,
        state_range=stats.states,
        text=ByteTokenizer(LAYOUT),
        images=images,
        cameras=source.cameras,
        history=2,
        horizon=HORIZON,
        max_length=1000,
        repeats_start=False,
        world_history=1,
    )
    codes = [
        store.codes(dataset, episodes, camera, images, first_id=LAYOUT.first_image_code) for camera in source.cameras
    ]
    samples = SampleSet(episodes, codes, encoding, ("vla", "world_model"))
    streamed = StreamedSamples(episodes, StreamedFrames([(dataset, episodes)]), encoding, ("vla", "world_model"))
    shuffled = np.random.default_rng(0).permutation(len(samples))
    for batch in load_batches(streamed, [shuffled], workers=1):
        assert_same_batches(batch, samples.batch(shuffled))
    sequences = [samples[number] for number in range(len(samples))]
    return [(sequence.input_ids.tolist(), sequence.labels.tolist()) for sequence in sequences]


@pytest.fixture(scope="module")
def expected(demonstrations: LiberoDataset, images: ImageTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return rows_of(demonstrations, images, tmp_path_factory.mktemp("libero"))


def as_lerobot(source: EpisodeSource, folder: Path) -> EpisodeSource:
    convert(source, folder / "v30", storage="png")
    return LeRobotDataset(folder / "v30")


def as_lerobot_v21(source: EpisodeSource, folder: Path) -> EpisodeSource:
    convert(source, folder / "v30", storage="png")
    return LeRobotDataset(as_v21(folder / "v30", folder / "v21"))


def as_rlds(source: LiberoDataset, folder: Path) -> EpisodeSource:
    pytest.importorskip("crc32c")
    records = [episode_features(source, episode) for episode in source.episodes()]
    size = source.image_size(source.cameras[0])
    return RldsDataset(write_rlds(folder, records, steps=steps_of(source, *size), shards=1), fps=20)


def as_robomimic(source: EpisodeSource, folder: Path) -> EpisodeSource:
    (task,) = {episode.task for episode in source.episodes()}
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number, episode in enumerate(source.episodes()):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["obs/state"] = episode.actions, episode.states
            for camera in source.cameras:
                demo[f"obs/{camera}"] = source.frames(episode, camera)
    return RobomimicDataset(folder / "demos.hdf5", state=("state",), cameras=source.cameras, instruction=task)


def as_conversations(source: EpisodeSource, folder: Path) -> EpisodeSource:
    cameras = {"agentview_rgb": "imgs_third_view", "eye_in_hand_rgb": "imgs_wrist"}
    trajectories, lists = folder / "processed_data" / "goal", folder / "processed_data" / "convs"
    write_trajectories(trajectories, source, cameras)
    lists.mkdir()
    found = vla_conversations(trajectories, history=2, horizon=HORIZON, cameras=list(cameras.values()))
    (lists / "all.json").write_text(json.dumps(found["all"]))
    return RynnVlaTrajectories(lists / "all.json")


def as_mixture(source: EpisodeSource, folder: Path) -> EpisodeSource:
    return MixtureSource([MixturePart(source)])


@pytest.mark.parametrize("as_format", [as_lerobot, as_lerobot_v21, as_rlds, as_robomimic, as_conversations, as_mixture])
def test_the_same_demonstrations_are_the_same_tokens_in_every_format(
    as_format: Callable[[EpisodeSource, Path], EpisodeSource],
    demonstrations: LiberoDataset,
    images: ImageTokenizer,
    expected: Rows,
    tmp_path: Path,
) -> None:
    assert rows_of(as_format(demonstrations, tmp_path), images, tmp_path / "store") == expected


def test_finished_rows_come_back_as_they_were(expected: Rows, tmp_path: Path) -> None:
    listed = write_records(tmp_path, expected)
    rows = Records(str(listed)).rows(tmp_path / "rows")
    found = [(row.input_ids.tolist(), row.labels.tolist()) for row in rows.batch(range(len(rows)))]
    assert found == expected
    assert np.array_equal(rows.lengths, [len(ids) for ids, _ in expected])

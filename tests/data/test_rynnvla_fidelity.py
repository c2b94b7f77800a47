"""A row that vlatrack builds from episodes is, id for id, the row that RynnVLA-002's own tokenisation makes.

What those are is written in tests/support/rynnvla_rows.py, from what its scripts do.
"""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from rynnvla_data import STATE_FOLDER, vla_conversations, world_model_conversations, write_trajectories
from rynnvla_rows import ExpectedRows, chameleon_like_tokenizer

from vlatrack.data.episodes import Episode, EpisodeSource, checked_frames
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.selection import select_episodes
from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable
from vlatrack.data.store.image_codes import ImageCodes
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import PretrainedTextTokenizer

LIBERO = Path(__file__).parent / "fixtures" / "libero-hdf5"
HORIZON = 5
CAMERAS = ("imgs_third_view", "imgs_wrist")

# RynnVLA-002's rynnvla-002/data/item_processor.py, for VLA rows of all four LIBERO suites
ACTION_RANGE = ValueRange(
    (-0.9375, -0.9375, -0.9375, -0.24214286, -0.375, -0.36428571, -1.0),
    (0.9375, 0.9375, 0.9375, 0.34821429, 0.375, 0.375, 1.0),
)
STATE_RANGE = ValueRange(
    (-0.4827807, -0.3309336, 0.00812818, 1.00279467, -3.63125079, -1.84273835, -0.00545302, -0.04201502),
    (0.210313803, 0.39042644, 1.47277813, 3.72486417, 3.56188956, 1.3863216, 0.0423214189, 0.00131260958),
)


class ManyTasks:
    """Ten tasks, of which the first has eleven demonstrations and the others have one."""

    name, cameras, action_dim, state_dim, fps = "many", CAMERAS, 2, 3, 20.0

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        tasks = ["act 0"] * 11 + [f"act {number}" for number in range(1, 10)]
        self._episodes = [
            Episode(
                index,
                task,
                generator.uniform(-1.2, 1.2, (7 + index % 2, 2)).astype(np.float32),
                generator.uniform(-3, 3, (7 + index % 2, 3)).astype(np.float32),
            )
            for index, task in enumerate(tasks)
        ]

    def episodes(self) -> list[Episode]:
        return self._episodes

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        generator = np.random.default_rng([episode.index, CAMERAS.index(camera)])
        return generator.integers(0, 256, (episode.length, 32, 32, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "m" * 64


class Quarters:
    """Stands for an image tokenizer: four codes, of the four quarters of an image."""

    codes_per_side = 2

    def encode(self, frames: np.ndarray) -> np.ndarray:
        side = frames.shape[1] // 2
        quarters = frames.reshape(len(frames), 2, side, 2, side, 3).astype(np.int64).sum(axis=(2, 4, 5))
        return 4 + quarters % 8192

    def fingerprint(self) -> str:
        return "q" * 64


def _encoding(actions: ValueRange, states: ValueRange, cameras: tuple[str, ...]) -> Encoding:
    text = PretrainedTextTokenizer(chameleon_like_tokenizer().to_str().encode(), Path("tokenizer.json"))
    return Encoding(
        layout=TokenLayout(),
        bins=Bins(256),
        action_range=actions,
        state_range=states,
        text=text,
        images=Quarters(),
        cameras=cameras,
        history=2,
        horizon=HORIZON,
        max_length=4096,
        repeats_start=False,
        world_history=1,
    )


def _expected(folder: Path, encoding: Encoding) -> ExpectedRows:
    assert encoding.state_range is not None
    return ExpectedRows(
        folder / "exps",
        tokenizer=chameleon_like_tokenizer(),
        codes=lambda image: Quarters().encode(image[None])[0],
        ranges={
            "action": (encoding.action_range.low, encoding.action_range.high),
            "state": (encoding.state_range.low, encoding.state_range.high),
        },
    )


def _rows(source: EpisodeSource, episodes: list[Episode], encoding: Encoding, kind: str) -> list:
    """The rows that vlatrack makes of episodes."""
    codes = [
        ImageCodes.of([encoding.images.encode(checked_frames(source, episode, camera)) for episode in episodes])
        for camera in encoding.cameras
    ]
    samples = SampleSet(EpisodeList.of(episodes), codes, encoding, (kind,))
    return [(samples[number].input_ids.tolist(), samples[number].labels.tolist()) for number in range(len(samples))]


def _listed(folder: Path, conversations: dict[str, list]) -> dict[str, Path]:
    """Each split's list, below `processed_data/convs`."""
    (folder / "processed_data/convs").mkdir(exist_ok=True)
    files = {split: folder / f"processed_data/convs/{split}.json" for split in conversations}
    for split, items in conversations.items():
        files[split].write_text(json.dumps(items, indent=2))
    return files


@pytest.fixture
def trajectories(tmp_path: Path) -> Path:
    """`processed_data`'s folder, with the trajectories of many tasks."""
    (tmp_path / "exps").mkdir()
    write_trajectories(tmp_path / "processed_data/many_256", ManyTasks(), {camera: camera for camera in CAMERAS})
    return tmp_path


def _conversations(folder: Path, kind: str) -> dict[str, list]:
    images = folder / "processed_data/many_256"
    if kind == "vla":
        return vla_conversations(images, history=2, horizon=HORIZON, cameras=CAMERAS)
    return world_model_conversations(images, cameras=CAMERAS)


MANY = (ValueRange((-1.0, -0.8), (1.0, 1.1)), ValueRange((-2.0, -2.0, -2.5), (2.0, 2.5, 3.0)))


@pytest.mark.parametrize("kind", ["vla", "world_model"])
def test_rows_of_trajectories_are_those_of_its_tokenisation(kind: str, trajectories: Path) -> None:
    encoding = _encoding(*MANY, CAMERAS)
    conversations = _conversations(trajectories, kind)
    expected = _expected(trajectories, encoding)
    for split, file in _listed(trajectories, conversations).items():
        source = RynnVlaTrajectories(file)
        rows = _rows(source, [*_with_states(source, trajectories)], encoding, kind)
        assert len(rows) == len(conversations[split]) > 0, split
        for number, item in enumerate(conversations[split]):
            assert rows[number] == expected.row(item), (split, number)


def _with_states(source: RynnVlaTrajectories, folder: Path) -> list[Episode]:
    """Its episodes; world-model conversations name no states, and their rows have none."""
    return [
        episode if episode.states is not None else replace(episode, states=np.zeros((episode.length, 3), np.float32))
        for episode in source.episodes()
    ]


def test_its_split_is_the_last_tenth_of_the_order_of_the_list(trajectories: Path) -> None:
    conversations = _conversations(trajectories, "vla")
    files = _listed(trajectories, conversations)
    everything = EpisodeTable.of(RynnVlaTrajectories(files["all"]).episodes())
    held_out = ("act 9",)
    chosen = {
        "train": select_episodes(everything, exclude_tasks=held_out, part="all_but_last_tenth"),
        "val_ind": select_episodes(everything, tasks=("act 0",), part="last_tenth"),
        "val_ood": select_episodes(everything, tasks=held_out),
    }
    for split, episodes in chosen.items():
        expected = RynnVlaTrajectories(files[split]).episodes()
        assert [(e.task, e.actions.tolist()) for e in episodes] == [(e.task, e.actions.tolist()) for e in expected]
    ninth = next(episode for episode in ManyTasks().episodes() if episode.index == 9)
    assert np.array_equal(chosen["val_ind"][0].actions, ninth.actions), "trj_9 is behind trj_10 as a text"


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    """The demonstrations of an HDF5 file as the reference writes them out: images turned by 180 degrees."""
    (tmp_path / "exps").mkdir()
    task = tmp_path / "processed_data/libero_goal_image_state_action_t_256/put_the_cream_cheese_in_the_bowl"
    with h5py.File(LIBERO / "put_the_cream_cheese_in_the_bowl_demo.hdf5") as file:
        for number in range(2):
            demo, folder = file[f"data/demo_{number}"], task / f"trj_{number}"
            for name in ("action", STATE_FOLDER, *CAMERAS):
                (folder / name).mkdir(parents=True)
            for step in range(len(demo["actions"])):
                np.save(folder / f"action/action_{step}.npy", demo["actions"][step])
                state = np.concatenate([demo["obs/ee_states"][step], demo["obs/gripper_states"][step]])
                np.save(folder / f"{STATE_FOLDER}/{STATE_FOLDER}_{step}.npy", state)
                for view, camera in zip(CAMERAS, ("agentview_rgb", "eye_in_hand_rgb"), strict=True):
                    pixels = demo[f"obs/{camera}"][step][::-1, ::-1]
                    Image.fromarray(pixels).save(folder / view / f"image_{step}.png")
    return tmp_path


@pytest.mark.parametrize("kind", ["vla", "world_model"])
def test_rows_of_liberos_files_are_those_of_its_tokenisation(kind: str, libero: Path) -> None:
    """From the HDF5 file itself, with the settings that the experiments of LIBERO have: images: rotated."""
    images = libero / "processed_data/libero_goal_image_state_action_t_256"
    conversations = (
        vla_conversations(images, history=2, horizon=HORIZON, cameras=CAMERAS)
        if kind == "vla"
        else world_model_conversations(images, cameras=CAMERAS)
    )["all"]
    source = LiberoDataset(LIBERO, skip_no_ops=False, images="rotated")
    encoding = _encoding(ACTION_RANGE, STATE_RANGE, source.cameras)
    rows = _rows(source, list(source.episodes()), encoding, kind)
    expected = _expected(libero, encoding)
    assert rows == [expected.row(item) for item in conversations]


def test_liberos_files_and_their_trajectories_are_the_same_episodes(libero: Path) -> None:
    images = libero / "processed_data/libero_goal_image_state_action_t_256"
    files = _listed(libero, vla_conversations(images, history=2, horizon=HORIZON, cameras=CAMERAS))
    written = RynnVlaTrajectories(files["all"])
    source = LiberoDataset(LIBERO, skip_no_ops=False, images="rotated")
    for found, expected in zip(written.episodes(), source.episodes(), strict=True):
        assert found.task == expected.task
        assert np.array_equal(found.actions, expected.actions)
        assert np.array_equal(found.states, expected.states)
        for view, camera in zip(written.cameras, source.cameras, strict=True):
            assert np.array_equal(written.frames(found, view), source.frames(expected, camera))

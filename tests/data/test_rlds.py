"""Reading RLDS datasets, which Google's protocol buffers wrote."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_damage import outcome, whole_dataset
from rlds_writer import (
    Values,
    encoded,
    episode_features,
    example,
    framed,
    image,
    masked_crc32c,
    steps_of,
    tensor,
    text,
    write_rlds,
)
from toy_source import STEPS, ToySource

from vlatrack.builders.data import open_source
from vlatrack.data.episodes import PIECE_BYTES, Episode
from vlatrack.data.formats.opening import open_dataset
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.errors import DataError, MissingPackageError
from vlatrack.spec.data import RldsSource

pytest.importorskip("crc32c")

CAMERA = "observation/front"


def toy(folder: Path, *, episodes: int = 5, shards: int = 2, changes: Mapping[int, Mapping[str, Values]] = {}) -> Path:
    """The toy's episodes, some of them changed."""
    source = ToySource(episodes=episodes)
    records = [
        episode_features(source, episode) | dict(changes.get(episode.index, {})) for episode in source.episodes()
    ]
    return write_rlds(folder / "squares", records, steps=steps_of(source, 32, 32), shards=shards)


def read(folder: Path) -> tuple[list[Episode], dict[int, str]]:
    """The good episodes, and what is said of the bad ones."""
    bad: dict[int, str] = {}
    source = RldsDataset(folder, fps=10)
    return list(source.readable_episodes(lambda index, error: bad.update({index: str(error)}))), bad


def test_actions_states_tasks_and_frames_are_those_that_were_written(tmp_path: Path) -> None:
    source, read_back = ToySource(episodes=11), RldsDataset(toy(tmp_path, episodes=11, shards=3), fps=10)
    assert read_back.cameras == (CAMERA,)
    for ours, written in zip(read_back.episodes(), source.episodes(), strict=True):
        assert (ours.index, ours.task) == (written.index, written.task)
        assert np.array_equal(ours.actions, written.actions)
        assert np.array_equal(ours.states, written.states)
        assert np.array_equal(read_back.frames(ours, CAMERA), source.frames(written, "front"))


def test_features_are_put_together_to_an_action_and_need_not_be_floats(tmp_path: Path) -> None:
    record: dict[str, Values] = {
        "steps/action/world_vector": np.arange(6, dtype=np.float32).reshape(2, 3),
        "steps/action/gripper": np.array([-1, 300]),
        "steps/observation/instruction": [b"open the drawer "] * 2,
    }
    steps = {
        "action": {"world_vector": tensor(3), "gripper": tensor(dtype="int32")},
        "observation": {"instruction": tensor(dtype="string"), "depth": image(4, 4, 1, dtype="float32")},
    }
    folder = write_rlds(tmp_path / "split", [record], steps=steps, shards=1)
    source = open_source(
        RldsSource(
            kind="rlds",
            path=str(folder),
            fps=5,
            action=("action/world_vector", "action/gripper"),
            state=None,
            instruction="observation/instruction",
        )
    )
    (episode,) = source.episodes()
    assert episode.actions.tolist() == [[0, 1, 2, -1], [3, 4, 5, 300]]
    assert (episode.task, episode.states, source.cameras, source.fps) == ("open the drawer", None, (), 5.0)
    commas = open_dataset(
        folder,
        action="action.world_vector,action/gripper",
        state="observation.state",
        fps=5,
        instruction="observation.instruction",
    )
    assert np.array_equal(commas.episodes()[0].actions, episode.actions)
    assert list(commas.action_names) == ["world_vector 0", "world_vector 1", "world_vector 2", "gripper"]


def test_a_flipped_bit_or_a_cut_is_told_in_one_line(tmp_path: Path) -> None:
    """`python tests/storms/rlds_storm.py` tries more of them."""
    whole = whole_dataset(tmp_path / "whole")
    outcomes = {outcome(whole, tmp_path / "damaged", seed) for seed in range(30)}
    assert outcomes <= {"told", "nothing changed"}


def test_after_a_bad_episode_the_others_are_read(tmp_path: Path) -> None:
    folder = toy(tmp_path, episodes=6, shards=2)
    file = folder / "squares-train.tfrecord-00000-of-00002"
    content = bytearray(file.read_bytes())
    second = 16 + int.from_bytes(content[:8], "little")
    content[second + 500] ^= 1
    file.write_bytes(content)
    good, bad = read(folder)
    assert [episode.index for episode in good] == [0, 2, 3, 4, 5]
    assert bad == {1: f"{file}: episode 1: its checksum is wrong; restore the file"}
    content[second] ^= 1  # its length: where the records behind it are is not known
    file.write_bytes(content)
    good, bad = read(folder)
    assert [episode.index for episode in good] == [0, 3, 4, 5]
    assert set(bad) == {1, 2}
    file.unlink()
    assert set(read(folder)[1]) == {0, 1, 2}
    with pytest.raises(DataError, match=r"00000-of-00002: cannot be read \(No such file or directory\)"):
        RldsDataset(folder, fps=10).episodes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps/action": np.zeros((STEPS, 3), np.float32)[:, :1]}, "14 states in 7 steps"),
        ({"steps/action": np.zeros(3, np.float32)}, "3 numbers of action, not 2 in each step"),
        ({"steps/action": np.full((STEPS, 2), np.nan, np.float32)}, "action has numbers that are not finite"),
        ({"steps/action": [b"text"] * STEPS}, "steps/action has no numbers"),
        ({"steps/action": np.zeros((0, 2), np.float32)}, "it has no steps"),
        ({"steps/is_last": np.arange(STEPS) == 5}, "is_last holds in the middle"),
        ({"steps/is_first": np.arange(STEPS) == 5}, "is_first holds in the middle"),
        ({"steps/is_first": np.ones(3, bool)}, "3 values of is_first in 14 steps"),
        ({"steps/language_instruction": [b"a", b"b"] * 7}, "2 different instructions; vlatrack needs exactly one"),
        ({"steps/language_instruction": [b" "] * STEPS}, "language_instruction is empty"),
        ({"steps/language_instruction": [b"\xff"] * STEPS}, "language_instruction is no text in UTF-8"),
        ({"steps/language_instruction": [b"push"]}, "1 instructions in 14 steps"),
        ({"steps/language_instruction": np.zeros(STEPS)}, "steps/language_instruction has no texts or images"),
    ],
)
def test_a_record_that_is_no_episode_is_named(tmp_path: Path, change: Mapping[str, Values], told: str) -> None:
    folder = toy(tmp_path, episodes=3, shards=1, changes={1: change})
    good, bad = read(folder)
    assert [episode.index for episode in good] == [0, 2]
    assert told in bad[1]
    assert bad[1].startswith(f"{folder}/squares-train.tfrecord-00000-of-00001: episode 1: ")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([b""] * STEPS, "image 0 of observation/front is empty"),
        ([b"GIF89a"] * STEPS, r"image 0 of observation/front: damaged \(cannot identify image file"),
        ([encoded(np.zeros((8, 8, 3), np.uint8))] * 3, "3 images of observation/front in 14 steps"),
        (
            [encoded(np.zeros((32, 32 - step // 9, 3), np.uint8)) for step in range(STEPS)],
            r"image 9 of observation/front is \[32, 31, 3\], expected \[32, 32, 3\]",
        ),
    ],
)
def test_images_that_are_none_are_named(tmp_path: Path, images: list[bytes], told: str) -> None:
    folder = toy(tmp_path, episodes=2, changes={1: {f"steps/{CAMERA}": images}})
    source = RldsDataset(folder, fps=10)
    with pytest.raises(DataError, match=f"episode 1: {told}"):
        source.frames(source.episodes()[1], CAMERA)


def test_frames_come_in_pieces_from_where_the_record_is(tmp_path: Path) -> None:
    """A process that has not read the episodes before, such as a worker, finds them by their place."""
    steps, size = 10, 1024
    pixels = np.random.default_rng(0).integers(0, 255, (steps, 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(pixels, (steps, size, size, 3))
    record = {
        "steps/action": np.zeros((steps, 1), np.float32),
        "steps/language_instruction": [b"look"] * steps,
        "steps/image": [encoded(frame) for frame in frames],
    }
    described = {"action": tensor(1), "language_instruction": text(), "image": image(-1, -1, 3)}
    folder = write_rlds(tmp_path / "large", [record] * 3, steps=described, shards=1)
    source = RldsDataset(folder, fps=10, state=None)
    episode = Episode(2, "look", np.zeros((steps, 1), np.float32), None)
    pieces = list(source.stream_frames(episode, "image", 2, 9))
    assert [len(piece) for piece in pieces] == [5, 2]
    assert max(piece.nbytes for piece in pieces) <= PIECE_BYTES
    assert np.array_equal(np.concatenate(pieces), frames[2:9])
    assert source.image_size("image") == (size, size)
    (file,) = folder.glob("*.tfrecord-*")
    first = framed(example(record | {"steps/image": [b"none"] * steps}))
    file.write_bytes(first + framed(example(record)) * 2)
    assert RldsDataset(folder, fps=10, state=None).image_size("image") == (size, size)


def test_a_dataset_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    folder = toy(tmp_path, episodes=2, shards=1)
    source = RldsDataset(folder, fps=10)
    episode = source.episodes()[0]
    (file,) = folder.glob("*.tfrecord-*")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(DataError, match="has changed since it was first read; start anew"):
        source.frames(episode, CAMERA)
    with pytest.raises(DataError, match=r"more follows the 2 records that dataset_info\.json counts"):
        RldsDataset(folder, fps=10).episodes()


def test_a_length_that_points_beyond_the_record_is_told_though_its_checksum_is_good(tmp_path: Path) -> None:
    folder = toy(tmp_path, episodes=1, shards=1)
    (file,) = folder.glob("*.tfrecord-*")
    whole = example(episode_features(ToySource(), ToySource().episodes()[0]))
    for at in range(60):
        content = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        file.write_bytes(framed(content))
        bad = read(folder)[1]
        assert all("\n" not in told for told in bad.values())
    file.write_bytes(framed(whole)[:-4] + masked_crc32c(b"other"))
    assert "its checksum is wrong" in read(folder)[1][0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fileFormat": "array_record"}, "its files are 'array_record'; vlatrack reads tfrecord"),
        ({"name": "../squares"}, "is no name of a file in its folder; do not trust this dataset"),
        ({"name": 3}, "no name, or no shardLengths of train"),
        ({"splits": [{"name": "train", "shardLengths": ["many"]}]}, "no name, or no shardLengths of train"),
        ({"splits": [{"name": "train", "shardLengths": ["9" * 12]}]}, "no name, or no shardLengths of train"),
        ({"splits": [{"name": "val", "shardLengths": ["1"]}]}, "no split 'train'; its splits: val"),
        (
            {"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "/etc/{SPLIT}"}]},
            "'/etc/train' is no name of a file in its folder",
        ),
    ],
)
def test_a_description_that_is_wrong_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    folder = toy(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | change))
    with pytest.raises(DataError, match=f"{folder}/dataset_info.json: .*{told}"):
        RldsDataset(folder, fps=10)


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    with pytest.raises(DataError, match="no feature 'actoin'; its number features: action, is_first, is_last, reward"):
        RldsDataset(folder, fps=10, action="actoin")
    with pytest.raises(DataError, match=r"feature 'action' is numbers \[2\]; its text features: language_instruction"):
        RldsDataset(folder, fps=10, instruction="action")
    source = RldsDataset(folder, fps=10)
    with pytest.raises(DataError, match="no camera 'wrist'; its cameras: observation/front"):
        source.frames(source.episodes()[0], "wrist")
    with pytest.raises(DataError, match="RLDS does not store how many steps a second has; give it, such as --fps 10"):
        open_dataset(folder, action="action", state="observation.state")
    with pytest.raises(DataError, match="no such folder; give the folder of an RLDS dataset"):
        RldsDataset(tmp_path / "nowhere", fps=10)
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"no dataset_info.json; give the folder of a version"):
        RldsDataset(folder.parent / "empty", fps=10)


def test_a_file_that_is_too_short_for_its_records_takes_no_memory_for_them(tmp_path: Path) -> None:
    folder = toy(tmp_path, episodes=2, shards=1)
    info = (folder / "dataset_info.json").read_text().replace('"shardLengths": ["2"]', '"shardLengths": ["90000000"]')
    (folder / "dataset_info.json").write_text(info)
    with pytest.raises(DataError, match=r"too short for the 90000000 records of dataset_info\.json; restore the file"):
        RldsDataset(folder, fps=10).episodes()


def test_the_folder_above_the_only_version_will_do(tmp_path: Path) -> None:
    toy(tmp_path / "squares-rlds")
    assert len(RldsDataset(tmp_path / "squares-rlds", fps=10).episodes()) == 5
    toy(tmp_path / "squares-rlds" / "other").rename(tmp_path / "squares-rlds" / "2.0.0")
    with pytest.raises(DataError, match=r"2 versions in it \(2\.0\.0, squares\)"):
        RldsDataset(tmp_path / "squares-rlds", fps=10)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[rlds\]'"):
        RldsDataset(toy(tmp_path), fps=10).episodes()

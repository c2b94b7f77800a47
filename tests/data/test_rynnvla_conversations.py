"""Conversations of RynnVLA-002 as episodes, and what is wrong with those that are none."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rynnvla_data import STATE_FOLDER, vla_conversations, world_model_conversations, write_trajectories
from toy_source import STEPS, ToySource

from vlatrack.data.episodes import PIECE_BYTES, checked_frames, frame_pieces
from vlatrack.data.formats.rynnvla.conversations import read_conversations, read_image, read_numbers
from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories
from vlatrack.errors import DataError

CAMERA = "imgs_third_view"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`processed_data`, with the toy's first three episodes, and one of another task."""
    folder = tmp_path / "processed_data"
    write_trajectories(folder / "toy", ToySource(episodes=3), {"front": CAMERA})
    (folder / "convs").mkdir()
    return folder


def _list(data: Path, items: list[dict[str, Any]], name: str = "all.json") -> Path:
    file = data / "convs" / name
    file.write_text(json.dumps(items, indent=2))
    return file


def _vla(data: Path) -> list[dict[str, Any]]:
    return vla_conversations(data / "toy", history=2, horizon=5, cameras=[CAMERA])["all"]


def _trajectory(data: Path, number: int = 0) -> Path:
    return data / "toy/push_the_square" / f"trj_{number}"


def test_an_item_holds_the_files_that_its_placeholders_stand_for(data: Path) -> None:
    conversations = list(read_conversations(_list(data, _vla(data))))
    item, folder = conversations[3], _trajectory(data)
    assert item.prompt == "What action should the robot take to push the square?"
    assert item.images == (folder / CAMERA / "image_2.png", folder / CAMERA / "image_3.png")
    assert item.states == (folder / STATE_FOLDER / f"{STATE_FOLDER}_3.npy",)
    assert [read_numbers(file).tolist() for file in item.actions] == [
        action.astype(float).tolist() for action in ToySource().episodes()[0].actions[3:8]
    ]
    assert item.next_images == ()
    world = list(
        read_conversations(_list(data, world_model_conversations(data / "toy", cameras=[CAMERA])["all"], "w.json"))
    )
    assert (world[3].images, world[3].next_images) == (
        (folder / CAMERA / "image_3.png",),
        (folder / CAMERA / "image_4.png",),
    )
    assert world[3].actions == (folder / "action/action_3.npy",)
    assert np.array_equal(read_image(world[3].images[0]), ToySource().frames(ToySource().episodes()[0], "front")[3])


def test_trajectories_are_the_episodes_that_they_were_made_of(data: Path) -> None:
    source = RynnVlaTrajectories(_list(data, _vla(data)))
    assert (source.cameras, source.action_dim, source.state_dim, source.fps) == ((CAMERA,), 2, 2, 20.0)
    toy = ToySource(episodes=3)
    assert len(source.episodes()) == 3
    for found, expected in zip(source.episodes(), toy.episodes(), strict=True):
        assert (found.index, found.task, found.length) == (expected.index, expected.task, STEPS)
        assert np.array_equal(found.actions, expected.actions)
        assert np.array_equal(found.states, expected.states)
        assert np.array_equal(checked_frames(source, found, CAMERA), toy.frames(expected, "front"))
        some = np.concatenate([*frame_pieces(source, found, CAMERA, 3, 7)])
        assert np.array_equal(some, toy.frames(expected, "front")[3:7])


def test_world_model_conversations_name_their_task_by_its_folder(data: Path) -> None:
    items = world_model_conversations(data / "toy", cameras=[CAMERA])["all"]
    source = RynnVlaTrajectories(_list(data, items))
    assert [(episode.task, episode.length) for episode in source.episodes()] == [("push the square", STEPS)] * 3
    assert source.state_dim == 0
    both = RynnVlaTrajectories(_list(data, items + _vla(data), "both.json"))
    assert both.state_dim == 2


def test_frames_come_in_pieces_of_a_limited_size(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlatrack.data.formats.rynnvla.trajectories.PIECE_BYTES", 32 * 32 * 3 * 4)
    source = RynnVlaTrajectories(_list(data, _vla(data)))
    sizes = [len(piece) for piece in frame_pieces(source, source.episodes()[0], CAMERA)]
    assert sizes == [4, 4, 4, 2]
    assert PIECE_BYTES == 16 << 20


def test_the_fingerprint_does_not_depend_on_the_place(data: Path) -> None:
    here = RynnVlaTrajectories(_list(data, _vla(data))).fingerprint()
    moved = data.rename(data.parent / "moved")
    with pytest.raises(DataError, match=r"item 0: no file '\.\./processed_data/toy.* give its root"):
        RynnVlaTrajectories(moved / "convs/all.json")
    (data.parent / "disk").mkdir()
    data = moved.rename(data.parent / "disk/processed_data")
    there = RynnVlaTrajectories(data / "convs/all.json")
    expected = {f"toy/push_the_square/trj_{number}/action/action_0.npy" for number in range(3)}
    assert expected <= there.file_digests().keys()
    assert there.fingerprint() == here
    file = _trajectory(data, 2) / CAMERA / "image_5.png"
    Image.fromarray(read_image(file)[::-1]).save(file)
    assert RynnVlaTrajectories(data / "convs/all.json").fingerprint() != here


def _spoil(path: str) -> Callable[[Path], None]:
    return lambda data: (_trajectory(data, 1) / path).unlink()


def _replace(path: str, content: bytes) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        (_trajectory(data, 1) / path).write_bytes(content)

    return change


def _npy(array: np.ndarray) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _header(text: str) -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_spoil("action/action_13.npy"), "episode 1: step 13 is missing"),
        (_spoil(f"{CAMERA}/image_4.png"), f"episode 1: step 4 is missing in {CAMERA} or action"),
        (_spoil(f"{STATE_FOLDER}/{STATE_FOLDER}_0.npy"), f"episode 1: step 0 is missing in {STATE_FOLDER}"),
        (_replace("action/action_2.npy", b""), r"action_2\.npy: no npy file of a vector"),
        (_replace("action/action_2.npy", _npy(np.zeros(3))), r"action_2\.npy: 3 numbers, others have 2"),
        (_replace("action/action_2.npy", _npy(np.zeros((2, 1)))), r"no npy file of a vector of numbers"),
        (_replace("action/action_2.npy", _npy(np.array(1.0))), r"no npy file of a vector of numbers"),
        (_replace("action/action_2.npy", _npy(np.array(["a", "b"]))), r"no npy file of a vector of numbers"),
        (_replace("action/action_2.npy", _npy(np.array([{}, 1], object))), r"no npy file of a vector of numbers"),
        (_replace("action/action_2.npy", _npy(np.array([np.nan, 1]))), r"NaN, infinity or"),
        (_replace("action/action_2.npy", _npy(np.array([1e39, 1]))), r"NaN, infinity or a number beyond 32 bits"),
        (_replace("action/action_2.npy", _npy(np.zeros(2))[:-1]), r"not of the size"),
        (
            _replace(
                "action/action_2.npy",
                _header("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999,), }") + bytes(16),
            ),
            r"not of the size",
        ),
        (_replace("action/action_2.npy", _header("{'descr': [[[[" * 20)), r"no npy file of a vector"),
        (_replace("action/action_2.npy", bytes(2 << 20)), r"too many for what it should hold"),
    ],
)
def test_a_damaged_trajectory_is_named_and_the_others_are_read(
    change: Callable[[Path], None], reason: str, data: Path
) -> None:
    file = _list(data, _vla(data))
    change(data)
    source = RynnVlaTrajectories(file)
    bad: list[tuple[int, str]] = []
    episodes = list(source.readable_episodes(lambda index, error: bad.append((index, str(error)))))
    assert [episode.index for episode in episodes] == [0, 2]
    assert [index for index, _ in bad] == [1]
    with pytest.raises(DataError, match=reason) as error:
        source.episodes()
    assert bad[0][1] == str(error.value)
    assert "\n" not in str(error.value)


def _png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged image"),
        (_png(32, 32), "damaged image"),
        (_png(100_000, 100_000), "damaged image"),
        (b"GIF89a" + bytes(100), "damaged image"),
        ("half", "damaged image"),
        ("larger", r"\(64, 64\) pixels, others of imgs_third_view have \(32, 32\)"),
    ],
)
def test_a_damaged_image_is_named(content: bytes | str, reason: str, data: Path) -> None:
    source = RynnVlaTrajectories(_list(data, _vla(data)))
    file = _trajectory(data) / CAMERA / "image_6.png"
    if content == "half":
        content = file.read_bytes()[:-30]
    if content == "larger":
        Image.new("RGB", (64, 64)).save(file)
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"image_6\.png: {reason}"):
        checked_frames(source, source.episodes()[0], CAMERA)


def _change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda item: item.update(changes)


IMAGES = [f"../processed_data/toy/push_the_square/trj_0/{CAMERA}/image_{step}.png" for step in (0, 1)]
OF_A_CHUNK = [f"../processed_data/toy/push_the_square/trj_0/action/action_1/{step}.npy" for step in range(5)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_change(conversations=[]), "is no conversation of one human and one gpt"),
        (_change(conversations="text"), "is no conversation of one human and one gpt"),
        (_change(conversations=[{"from": "human", "value": 5}, {"from": "gpt", "value": ""}]), "is no conversation"),
        (_change(image=IMAGES[:1]), r"more placeholders <\|image\|> than files"),
        (_change(image=[*IMAGES, *IMAGES]), "more files than it has placeholders"),
        (_change(image=["/etc/hostname", IMAGES[0]]), "'/etc/hostname' is not below"),
        (_change(image=["../../../../../etc/x.png", IMAGES[0]]), "is not below"),
        (_change(image=[IMAGES[0].replace("trj_0", "trj_9"), IMAGES[0]]), "mixes trajectories"),
        (_change(image=[IMAGES[0].replace("trj_0", "trj_1"), IMAGES[0]]), "mixes trajectories"),
        (_change(action=OF_A_CHUNK), "action_1 is a chunk of its own for one step"),
        (_change(state=None), "None is no path"),
        (lambda item: (item.clear(), item.update(file="x.pkl")), "use kind: rynnvla_records"),
        (
            lambda item: item["conversations"][0].update(
                value=item["conversations"][0]["value"].replace("push", "pull")
            ),
            "has another task than its trajectory had before",
        ),
    ],
)
def test_what_is_no_step_of_a_trajectory_is_named(
    change: Callable[[dict[str, Any]], Any], reason: str, data: Path
) -> None:
    (_trajectory(data) / "action/action_1").mkdir()
    (_trajectory(data) / "action/action_1/0.npy").write_bytes(_npy(np.zeros(2)))
    items = _vla(data)
    change(items[1])
    with pytest.raises(DataError, match=rf"all\.json: item 1.*{reason}") as error:
        RynnVlaTrajectories(_list(data, items))
    assert "\n" not in str(error.value)


def test_a_list_without_conversations_is_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"all\.json: no conversation in it"):
        RynnVlaTrajectories(_list(data, []))

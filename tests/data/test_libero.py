"""Reading LIBERO's HDF5 demonstrations."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_damage import try_seed

from vlatrack.data.formats.hdf5 import reading
from vlatrack.data.formats.hdf5.texts import attribute
from vlatrack.data.formats.libero import LiberoDataset, moving_steps
from vlatrack.errors import DataError

REAL = Path(__file__).parent / "fixtures" / "libero-hdf5"
FILE = "put_the_cream_cheese_in_the_bowl_demo.hdf5"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of real demonstrations, to be changed."""
    return Path(shutil.copytree(REAL, tmp_path / "libero"))


def actions_of(*steps: tuple[float, float]) -> np.ndarray:
    """Actions from (movement, gripper)."""
    return np.array([[movement, 0, 0, 0, 0, 0, gripper] for movement, gripper in steps])


def test_demonstrations_are_read_with_their_instruction_and_state() -> None:
    dataset = LiberoDataset(REAL, skip_no_ops=False)
    episodes = dataset.episodes()
    assert [(e.index, e.task, e.length) for e in episodes] == [
        (0, "put the cream cheese in the bowl", 10),
        (1, "put the cream cheese in the bowl", 6),
    ]
    assert (dataset.action_dim, dataset.state_dim, dataset.fps) == (7, 8, 20.0)
    with h5py.File(REAL / FILE) as file:
        stored = file["data/demo_1"]
        assert np.array_equal(episodes[1].actions, stored["actions"][:].astype("f4"))
        assert np.array_equal(episodes[1].states[:, :6], stored["obs/ee_states"][:].astype("f4"))
        assert np.array_equal(episodes[1].states[:, 6:], stored["obs/gripper_states"][:].astype("f4"))


def test_images_are_turned_upright() -> None:
    dataset = LiberoDataset(REAL, skip_no_ops=False)
    for camera in dataset.cameras:
        frames = dataset.frames(dataset.episodes()[0], camera)
        assert frames.shape == (10, 64, 64, 3)
        assert dataset.image_size(camera) == (64, 64)
        with h5py.File(REAL / FILE) as file:
            assert np.array_equal(frames[3][::-1], file[f"data/demo_0/obs/{camera}"][3])
    view = dataset.frames(dataset.episodes()[0], "agentview_rgb")
    assert view[:, :10].mean() < 150 < view[:, 50:].mean()  # grey wall above, bright table below


def test_steps_that_do_nothing_are_left_out_with_their_frames() -> None:
    dataset = LiberoDataset(REAL)
    first = dataset.episodes()[0]
    assert first.length == 7  # step 6 stands still too, but turns the gripper's command
    frames = dataset.frames(first, "agentview_rgb")
    whole = LiberoDataset(REAL, skip_no_ops=False)
    assert np.array_equal(frames, whole.frames(whole.episodes()[0], "agentview_rgb")[:7])


def test_a_step_does_nothing_if_hand_and_gripper_stay_as_in_the_last_kept_step() -> None:
    actions = actions_of((0, -1), (0, 1), (0.5, 1), (0, 1), (5e-5, 1), (0, -1), (0, -1), (0.2, -1), (1e-3, -1))
    assert moving_steps(actions).tolist() == [2, 5, 7, 8]


def test_the_instruction_comes_from_the_file_name_if_the_file_has_none(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        del file["data"].attrs["problem_info"]
    assert LiberoDataset(copy).episodes()[0].task == "put the cream cheese in the bowl"
    (copy / FILE).rename(copy / "KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5")
    assert LiberoDataset(copy).episodes()[0].task == "close the top drawer"


def test_demonstrations_are_ordered_by_number(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        file["data"].move("demo_0", "demo_10")
    assert [episode.length for episode in LiberoDataset(copy, skip_no_ops=False).episodes()] == [6, 10]


def test_the_fingerprint_follows_the_content_and_not_the_place(copy: Path) -> None:
    assert LiberoDataset(copy).fingerprint() == LiberoDataset(REAL).fingerprint()
    assert LiberoDataset(copy).fingerprint() != LiberoDataset(copy, skip_no_ops=False).fingerprint()
    with h5py.File(copy / FILE, "a") as file:
        file["data/demo_0/actions"][0, 0] = 0.25
    assert LiberoDataset(copy).fingerprint() != LiberoDataset(REAL).fingerprint()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        LiberoDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \*.hdf5 in it"):
        LiberoDataset(tmp_path)


def test_an_unknown_camera_is_told_which_there_are() -> None:
    dataset = LiberoDataset(REAL)
    with pytest.raises(DataError, match="no camera 'top'; its cameras: agentview_rgb, eye_in_hand_rgb"):
        dataset.frames(dataset.episodes()[0], "top")


def test_a_cut_off_file_is_named(copy: Path) -> None:
    content = (copy / FILE).read_bytes()
    (copy / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{FILE}: damaged HDF5 file") as caught:
        LiberoDataset(copy).episodes()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, ValueError, KeyError])
def test_whatever_h5py_says_of_a_damaged_file_is_one_line(copy: Path, monkeypatch, kind: type[Exception]) -> None:
    def fail(*_: object) -> None:
        raise kind("Link iteration failed\nbad local heap signature")

    monkeypatch.setattr(h5py.Group, "__iter__", fail)
    with pytest.raises(
        DataError, match=f"{FILE}: damaged HDF5 file .*Link iteration failed.*restore the file$"
    ) as told:
        LiberoDataset(copy).episodes()
    assert len(str(told.value).splitlines()) == 1


def test_damage_that_h5py_has_no_words_for_is_told_by_its_kind(copy: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(h5py.Group, "__iter__", fail)
    with pytest.raises(DataError, match=rf"{FILE}: damaged HDF5 file \(RuntimeError\); restore the file$"):
        LiberoDataset(copy).episodes()


def test_a_file_of_something_else_is_named(copy: Path) -> None:
    with h5py.File(copy / "other.hdf5", "w") as file:
        file["temperatures"] = [1.0, 2.0]
    with pytest.raises(DataError, match=r"other.hdf5: no data/demo_0 in it"):
        LiberoDataset(copy).episodes()


def test_actions_of_another_robot_are_reported(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((6, 8))
    with pytest.raises(DataError, match=r"data/demo_1/actions is float64 \[6, 8\], not 7 numbers a step"):
        LiberoDataset(copy).episodes()


def test_states_and_images_that_do_not_fit_the_actions_are_reported(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        frames = file["data/demo_1/obs/agentview_rgb"][:4]
        del file["data/demo_1/obs/agentview_rgb"]
        file["data/demo_1/obs/agentview_rgb"] = frames
    dataset = LiberoDataset(copy)
    with pytest.raises(DataError, match="data/demo_1: 4 images of agentview_rgb, too few"):
        dataset.frames(dataset.episodes()[1], "agentview_rgb")
    with h5py.File(copy / FILE, "a") as file:
        del file["data/demo_1/obs/gripper_states"]
        file["data/demo_1/obs/gripper_states"] = np.zeros((5, 2))
    with pytest.raises(DataError, match="data/demo_1: states and actions differ in number"):
        LiberoDataset(copy).episodes()


def test_a_demonstration_in_which_nothing_moves_is_reported(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        file["data/demo_0/actions"][...] = 0
    with pytest.raises(DataError, match="data/demo_0: the robot never moves"):
        LiberoDataset(copy).episodes()


def test_data_that_lies_in_another_file_is_refused(copy: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "outside.hdf5", "w") as outside:
        outside["actions"] = np.ones((6, 7))
    with h5py.File(copy / FILE, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = h5py.ExternalLink(str(tmp_path / "outside.hdf5"), "actions")
    with pytest.raises(DataError, match="demo_1/actions"):
        LiberoDataset(copy).episodes()
    with h5py.File(copy / FILE, "a") as file:
        del file["data/demo_1/actions"]
        (tmp_path / "raw.bin").write_bytes(np.ones((6, 7)).tobytes())
        file["data/demo_1"].create_dataset("actions", (6, 7), "f8", external=str(tmp_path / "raw.bin"))
    with pytest.raises(DataError, match="stored in another file"):
        LiberoDataset(copy).episodes()


def test_rotated_images_are_the_mirror_image_of_upright_ones_and_make_another_dataset() -> None:
    upright, rotated = LiberoDataset(REAL), LiberoDataset(REAL, images="rotated")
    frames, turned = (source.frames(source.episodes()[0], "agentview_rgb") for source in (upright, rotated))
    assert (turned == frames[:, :, ::-1]).all()
    assert (turned != frames).any()
    assert upright.fingerprint() != rotated.fingerprint()


def test_images_can_be_left_as_they_are_stored() -> None:
    stored = LiberoDataset(REAL, images="as_stored")
    upright = LiberoDataset(REAL)
    frames, turned = (source.frames(source.episodes()[0], "eye_in_hand_rgb") for source in (stored, upright))
    assert np.array_equal(frames[:, ::-1], turned)
    assert len({source.fingerprint() for source in (stored, upright, LiberoDataset(REAL, images="rotated"))}) == 3


def test_by_name_demonstration_10_comes_before_demonstration_2_and_so_the_last_tenth_is_another(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        for number in range(2, 12):
            file.copy("data/demo_1", f"data/demo_{number}")
            file[f"data/demo_{number}/actions"][0, 0] = number / 100

    def last(**settings: str) -> int:
        episodes = LiberoDataset(copy, skip_no_ops=False, **settings).episodes()
        assert [episode.index for episode in episodes] == list(range(12))
        return round(float(episodes[-1].actions[0, 0]) * 100)

    assert last() == 11
    assert last(order="name") == 9
    assert LiberoDataset(copy).fingerprint() != LiberoDataset(copy, order="name").fingerprint()


def test_a_prompt_can_be_the_name_of_the_task_with_its_scene(copy: Path) -> None:
    (copy / FILE).rename(copy / "KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5")
    by_name = LiberoDataset(copy, prompt="name")
    assert {episode.task for episode in by_name.episodes()} == {"KITCHEN SCENE10 close the top drawer"}
    assert {episode.task for episode in LiberoDataset(copy).episodes()} == {"put the cream cheese in the bowl"}
    assert by_name.fingerprint() != LiberoDataset(copy).fingerprint()


def test_one_file_is_a_dataset_too() -> None:
    assert [e.length for e in LiberoDataset(REAL / FILE).episodes()] == [
        e.length for e in LiberoDataset(REAL).episodes()
    ]
    with pytest.raises(DataError, match=r"other\.hdf5: no such file"):
        LiberoDataset(REAL / "other.hdf5")


def test_a_part_of_an_episode_is_read_in_pieces_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 2 * 64 * 64 * 3)
    source = LiberoDataset(REAL)
    episode = source.episodes()[0]
    pieces = list(source.stream_frames(episode, "agentview_rgb", 1, 6))
    assert max(map(len, pieces)) <= 2 < len(pieces)
    assert np.array_equal(np.concatenate(pieces), source.frames(episode, "agentview_rgb")[1:6])
    assert list(source.stream_frames(episode, "agentview_rgb", 3, 3)) == []


def test_what_a_source_keeps_does_not_grow_with_the_steps_of_its_episodes() -> None:
    source = LiberoDataset(REAL)
    episode = source.episodes()[0]
    source.frames(episode, "agentview_rgb")
    assert not [value for value in vars(source).values() if isinstance(value, np.ndarray)]
    assert episode is not source.episodes()[0], "nothing of an episode is remembered"
    assert len(source._entries) == 2


def test_the_other_episodes_can_be_read_if_one_cannot(copy: Path) -> None:
    with h5py.File(copy / FILE, "a") as file:
        file["data/demo_0/actions"][3, 2] = np.nan
    (copy / "a_cut_off_demo.hdf5").write_bytes((copy / FILE).read_bytes()[:1000])
    (copy / "b_pipe.hdf5").mkdir()
    told: dict[int, str] = {}
    episodes = list(LiberoDataset(copy).readable_episodes(lambda index, error: told.update({index: str(error)})))
    assert [(episode.index, episode.length) for episode in episodes] == [(3, 6)]
    assert "a_cut_off_demo.hdf5: damaged HDF5 file" in told[0]
    assert "b_pipe.hdf5: is no file" in told[1]
    assert f"{FILE}: data/demo_0/actions has numbers that are not finite" in told[2]


def test_a_file_that_git_has_not_fetched_is_told_as_such(copy: Path) -> None:
    (copy / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:88236f\nsize 81231431\n")
    with pytest.raises(DataError, match=f"{FILE}: stands for a file that Git LFS has not fetched; run git lfs pull"):
        LiberoDataset(copy).episodes()


def test_a_file_that_changes_while_it_is_read_is_named(copy: Path) -> None:
    source = LiberoDataset(copy)
    episode = source.episodes()[1]
    with h5py.File(copy / FILE, "a") as file:
        file["data/demo_1/actions"][...] = 0
        file["data/demo_1/actions"][0, 0] = 1
    with pytest.raises(DataError, match="data/demo_1 has 1 steps, and had 6 when it was read first"):
        source.frames(episode, "agentview_rgb")


Change = Callable[[h5py.File], None]


def replaced(name: str, **content: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        if content:
            file.create_dataset(name, **content)

    return change


def linked(name: str, link: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def virtual(name: str) -> Change:
    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((6, 7), "f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "actions", (6, 7))
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


ACTIONS, VIEW = "data/demo_1/actions", "data/demo_1/obs/agentview_rgb"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(ACTIONS), f"no {ACTIONS} in it"),
        (replaced(ACTIONS, data=1.5), r"actions is float64 \[\], not 7 numbers a step"),
        (replaced(ACTIONS, dtype=h5py.Empty("f8").dtype, data=h5py.Empty("f8")), "actions is empty"),
        (replaced(ACTIONS, data=np.zeros((0, 7))), "states and actions differ in number"),
        (replaced(ACTIONS, data=np.full((6, 7), b"a word")), r"actions is \|S6 \[6, 7\], not 7 numbers"),
        (replaced(ACTIONS, data=np.full((6, 7), 1e300)), "actions has numbers that are not finite"),
        (replaced(ACTIONS, shape=(6, 7), dtype=h5py.vlen_dtype(np.float64)), r"actions is object \[6, 7\]"),
        (replaced(ACTIONS, shape=(1 << 40, 7), dtype="f8", chunks=(64, 7)), "more than the 0 bytes of it can hold"),
        (replaced("data/demo_1/obs/ee_states", data=np.zeros((6, 5))), r"ee_states is float64 \[6, 5\], not 6"),
        (linked(ACTIONS, h5py.SoftLink("/data/demo_0/actions")), f"{ACTIONS} is a link"),
        (linked("data/demo_1", h5py.ExternalLink("/etc/passwd", "data")), "data/demo_1/actions is a link"),
        (virtual(ACTIONS), "stored in another file"),
    ],
)
def test_numbers_that_are_none_are_one_line_with_file_and_demonstration(
    copy: Path, change: Change, message: str
) -> None:
    with h5py.File(copy / FILE, "a") as file:
        change(file)
    told: list[str] = []
    episodes = list(LiberoDataset(copy).readable_episodes(lambda index, error: told.append(f"{index}: {error}")))
    assert [episode.index for episode in episodes] == [0]
    assert re.search(rf"^1: .*{FILE}: .*{message}", told[0])
    assert len(told[0].splitlines()) == len(told) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(VIEW), f"no {VIEW} in it"),
        (replaced(VIEW, data=np.zeros((6, 8, 8, 3))), r"holds no images but float64 \[6, 8, 8, 3\]"),
        (replaced(VIEW, data=np.zeros((6, 0, 8, 3), np.uint8)), "holds no images"),
        (replaced(VIEW, shape=(6, 1 << 15, 1 << 15, 3), dtype="u1", chunks=(1, 64, 64, 3)), "more than the 0 bytes"),
        (linked(VIEW, h5py.SoftLink("/data/demo_0/obs/agentview_rgb")), "is a link"),
    ],
)
def test_images_that_are_none_are_one_line_with_file_and_demonstration(
    copy: Path, change: Change, message: str
) -> None:
    with h5py.File(copy / FILE, "a") as file:
        change(file)
    source = LiberoDataset(copy)
    with pytest.raises(DataError, match=rf"{FILE}: {VIEW}|no {VIEW}") as told:
        source.frames(source.episodes()[1], "agentview_rgb")
    assert re.search(message, str(told.value))


def test_texts_of_any_length_are_read(tmp_path: Path) -> None:
    """Also where they fill their heap to its end, or where there are many of them."""
    for length in (1, 3000, *range(4000, 4100, 8), 70_000, 1 << 20):
        with h5py.File(tmp_path / "text.hdf5", "w") as file:
            for number in range(3):
                file.create_group(f"demo_{number}").attrs["text"] = str(number) * length
        with h5py.File(tmp_path / "text.hdf5") as file:
            assert [attribute(file, f"demo_{number}", "text") for number in range(3)] == [
                str(number) * length for number in range(3)
            ]


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    """1,000 of these are in tests/storms/hdf5_storm.py; a text without an end, and one of 512 MB, are among them."""
    found = [
        try_seed((REAL / FILE).read_bytes(), tmp_path / FILE, seed, LiberoDataset) for seed in (*range(28), 417, 448)
    ]
    assert sum(bool(reading.told) for reading in found) > 10
    assert sum(reading.episodes == 2 and not reading.told for reading in found) > 5
    assert "no end of its texts" in found[-2].told[0]
    assert "a text of 536,871,048 bytes" in found[-1].told[0]

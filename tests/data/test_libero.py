"""Reading LIBERO's HDF5 demonstrations."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

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
    with pytest.raises(DataError, match="data/demo_1: 4 images, too few"):
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

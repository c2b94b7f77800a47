"""Reading robomimic's HDF5 demonstrations."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from robomimic_file import CAMERAS, write_robomimic

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.opening import open_dataset
from vlatrack.data.formats.robomimic import RobomimicDataset
from vlatrack.errors import DataError
from vlatrack.testing.dataset_contract import DatasetContract


class TestRobomimic(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        write_robomimic(tmp_path / "lift.hdf5")
        (tmp_path / "changed").mkdir()
        write_robomimic(tmp_path / "changed" / "lift.hdf5", seed=1)

    def open(self) -> EpisodeSource:
        return RobomimicDataset(self.folder / "lift.hdf5")

    def open_changed(self) -> EpisodeSource:
        return RobomimicDataset(self.folder / "changed")


def test_episodes_have_what_is_stored_and_images_as_they_are(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "lift_the_cube.hdf5")
    source = RobomimicDataset(path)
    assert (source.cameras, source.action_dim, source.state_dim, source.fps) == (CAMERAS, 7, 9, 10.0)
    first, second = source.episodes()
    assert (first.task, first.length, second.length) == ("lift the cube", 5, 3)
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        names = ("eef_pos", "eef_quat", "gripper_qpos")
        state = np.concatenate([demo[f"obs/robot0_{name}"][:] for name in names], axis=1)
        assert np.array_equal(second.actions, demo["actions"][:].astype("f4"))
        assert np.array_equal(second.states, state.astype("f4"))
        assert np.array_equal(source.frames(second, CAMERAS[1]), demo[f"obs/{CAMERAS[1]}"][:])
    assert source.image_size(CAMERAS[0]) == (8, 12)


def test_action_states_cameras_and_instruction_can_be_chosen(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "lift.hdf5")
    settings = {"action": "actions_abs", "state": ("robot0_joint_pos", "contact"), "cameras": CAMERAS[1:]}
    chosen = RobomimicDataset(path, **settings, instruction="lift the cube")
    assert (chosen.cameras, chosen.action_dim, chosen.state_dim) == (CAMERAS[1:], 10, 8)
    assert [episode.task for episode in chosen.episodes()] == ["lift the cube"] * 2
    with h5py.File(path) as file:
        assert np.array_equal(chosen.episodes()[0].states[:, 7], file["data/demo_0/obs/contact"][:].astype("f4"))
    assert RobomimicDataset(path, state=()).episodes()[0].states is None
    assert chosen.fingerprint() != RobomimicDataset(path, **settings).fingerprint()


def test_each_demonstration_may_have_an_instruction_of_its_own(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "kitchen.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "open the left drawer"})
    assert [episode.task for episode in RobomimicDataset(path).episodes()] == ["kitchen", "open the left drawer"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": ("robot1_eef_pos",)}, "data/demo_0 has no 'robot1_eef_pos'; observations: agentview_image, contact"),
        ({"cameras": ("frontview_image",)}, "has no 'frontview_image'"),
        ({"action": "actions_delta"}, "no data/demo_0/actions_delta in it"),
    ],
)
def test_what_a_file_lacks_is_told_when_it_is_opened(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"lift.hdf5: .*{message}"):
        RobomimicDataset(write_robomimic(tmp_path / "lift.hdf5"), **settings)


def test_a_demonstration_of_another_robot_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "lift.hdf5", lengths=(4, 4, 4))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((4, 14))
    told: list[str] = []
    found = list(RobomimicDataset(path).readable_episodes(lambda index, error: told.append(f"{index}: {error}")))
    assert [episode.index for episode in found] == [0, 2]
    assert told == [
        f"1: {path}: data/demo_1/actions is float64 [4, 14], not 7 numbers a step; restore the file, or leave this "
        "demonstration out"
    ]


def test_the_format_of_a_file_is_found_by_what_is_in_it(tmp_path: Path) -> None:
    libero = Path(__file__).parent / "fixtures" / "libero-hdf5"
    lift = write_robomimic(tmp_path / "lift.hdf5")
    opened = [open_dataset(path, action="action", state="observation.state") for path in (libero, lift, tmp_path)]
    assert [type(source) for source in opened] == [LiberoDataset, RobomimicDataset, RobomimicDataset]

"""Writes robomimic's HDF5 files."""

import json
from pathlib import Path

import h5py
import numpy as np

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def write_robomimic(path: Path, *, lengths: tuple[int, ...] = (5, 3), seed: int = 0) -> Path:
    """A file as robomimic's dataset_states_to_obs.py writes it, with next_obs, a mask and states of the simulator."""
    draws = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 10}})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = draws.uniform(-1, 1, (length, 7))
            demo["actions_abs"] = draws.uniform(-1, 1, (length, 10))
            demo["states"] = draws.normal(size=(length, 32))
            for name, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2), ("joint_pos", 7)):
                demo[f"obs/robot0_{name}"] = draws.normal(size=(length, size))
            demo["obs/contact"] = draws.integers(0, 2, length)
            for camera in CAMERAS:
                images = draws.integers(0, 256, (length, 8, 12, 3), np.uint8)
                demo["obs"].create_dataset(camera, data=images, compression="gzip")
        file["mask/train"] = np.array([b"demo_0"])
    return path

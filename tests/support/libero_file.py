"""Writes HDF5 files in LIBERO's layout, with the states of the simulator, of a scripted expert."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np

from vlatrack.data.formats.libero import words_of_task
from vlatrack.envs.libero import Libero

WAIT = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


def write_libero(folder: Path, benchmark: str, task: str, *, demonstrations: int, lengths: Sequence[int] = ()) -> Path:
    """A file with states, actions and what the robot felt; without images, so that no OpenGL is needed.

    Demonstration n begins in the n-th stored state after 10 waits, as when it is repeated, and has a no-op after its
    third step; it ends four steps after success.

    Args:
        lengths: how many actions of the first demonstrations are stored, for such that do not succeed; 0: all.
    """
    path = folder / f"{task}_demo.hdf5"
    with closing(Libero(benchmark=benchmark, cameras=())) as environment, h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": words_of_task(task)})
        for number in range(demonstrations):
            group = data.create_group(f"demo_{number}")
            environment.reset_to(task, seed=0, initial_state=number)
            first = environment._running._env.get_sim_state()
            for _ in range(10):
                observation = environment.step_unseen(WAIT).observation
            actions, states, left = [], [], 400
            while left > 0:
                action = environment.expert_action()
                if len(actions) == 3:
                    action = np.concatenate([np.zeros(6, np.float32), actions[-1][6:]])
                actions.append(action)
                states.append(observation.state)
                result = environment.step_unseen(action)
                observation = result.observation
                left = min(left - 1, 4) if result.success else left - 1
            end = lengths[number] if number < len(lengths) and lengths[number] else len(actions)
            group["actions"] = np.array(actions[:end], np.float64)
            group["states"] = np.repeat(first[None], end, axis=0)
            group["obs/ee_states"] = np.array(states[:end], np.float64)[:, :6]
            group["obs/gripper_states"] = np.array(states[:end], np.float64)[:, 6:]
    return path

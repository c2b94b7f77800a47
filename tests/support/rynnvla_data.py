"""Data as the scripts of RynnVLA-002 leave it on the disk: trajectories, conversations and records.

Written from what these scripts do, independently of the code that reads it. `processed_data` is their data folder; the
paths in it are relative to a folder beside it, from which the scripts are started.
"""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlatrack.data.episodes import EpisodeSource

STATE_FOLDER = "eef_gripper_state"
WORLD_MODEL_QUESTION = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)


def write_trajectories(folder: Path, source: EpisodeSource, cameras: Mapping[str, str]) -> None:
    """The episodes of a dataset as files of one step each: `TASK/trj_N/FOLDER/….npy|png`.

    Args:
        cameras: folder of each camera.
    """
    counts: dict[str, int] = {}
    for episode in source.episodes():
        number = counts.setdefault(episode.task, 0)
        counts[episode.task] += 1
        trajectory = folder / episode.task.replace(" ", "_") / f"trj_{number}"
        for name in ("action", STATE_FOLDER, *cameras.values()):
            (trajectory / name).mkdir(parents=True)
        assert episode.states is not None
        for step in range(episode.length):
            np.save(trajectory / "action" / f"action_{step}.npy", episode.actions[step].astype(np.float64))
            np.save(trajectory / STATE_FOLDER / f"{STATE_FOLDER}_{step}.npy", episode.states[step].astype(np.float64))
        for camera, name in cameras.items():
            for step, frame in enumerate(source.frames(episode, camera)):
                Image.fromarray(frame).save(trajectory / name / f"image_{step}.png")


def vla_conversations(folder: Path, *, history: int, horizon: int, cameras: Sequence[str]) -> dict[str, list[Any]]:
    """Of every step with a whole chunk, by split, and all."""
    found: dict[str, list[Any]] = {"train": [], "val_ind": [], "val_ood": [], "all": []}
    for split, task, trajectory, length in _trajectories(folder):
        for step in range(length - horizon + 1):
            moments = range(max(0, step - history + 1), step + 1)
            images = [f"{trajectory}/{camera}/image_{moment}.png" for moment in moments for camera in cameras]
            question = f"What action should the robot take to {task}?<|state|>" + "<|image|>" * len(images)
            item = {
                "conversations": _turns(question, "<|action|>" * horizon),
                "image": images,
                "action": [f"{trajectory}/action/action_{step + later}.npy" for later in range(horizon)],
                "state": [f"{trajectory}/{STATE_FOLDER}/{STATE_FOLDER}_{step}.npy"],
            }
            found[split].append(item)
            found["all"].append(item)
    return found


def world_model_conversations(folder: Path, *, cameras: Sequence[str]) -> dict[str, list[Any]]:
    """Of every step that another follows, by split, and all; with one step of history, as the reference has them."""
    found: dict[str, list[Any]] = {"train": [], "val_ind": [], "val_ood": [], "all": []}
    for split, _, trajectory, length in _trajectories(folder):
        for step in range(length - 1):
            images = [f"{trajectory}/{camera}/image_{moment}.png" for moment in (step, step + 1) for camera in cameras]
            placeholders = "<|image|>" * len(cameras)
            item = {
                "conversations": _turns(f"{WORLD_MODEL_QUESTION}{placeholders}<|action|>", placeholders),
                "image": images,
                "action": [f"{trajectory}/action/action_{step}.npy"],
            }
            found[split].append(item)
            found["all"].append(item)
    return found


def write_records(folder: Path, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, name: str = "rows") -> Path:
    """Rows of ids and labels as records below `processed_data` in a folder; the YAML that names their list."""
    files = folder / "processed_data" / "tokens" / name / "files"
    files.mkdir(parents=True)
    listed = []
    for number, (ids, labels) in enumerate(rows):
        content = pickle.dumps({"token": list(ids), "label": list(labels), "id": number})
        (files / f"{number}.pkl").write_bytes(content)
        path = f"../processed_data/tokens/{name}/files/{number}.pkl"
        listed.append({"file": path, "len": len(ids), "id": number})
    list_file = folder / "processed_data" / "concate_tokens" / f"{name}.json"
    list_file.parent.mkdir(exist_ok=True)
    list_file.write_text(json.dumps(listed))
    config = folder / "configs" / "libero_goal" / f"{name}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f"META:\n  - path: '../processed_data/concate_tokens/{name}.json'\n")
    return config


def _trajectories(folder: Path) -> list[tuple[str, str, str, int]]:
    """Split, task, path as the scripts write it, and length of every trajectory, in the order of the scripts."""
    found = []
    tasks = sorted(folder.iterdir())
    for number, task in enumerate(tasks):
        names = sorted(path.name for path in task.iterdir())
        for index, name in enumerate(names):
            is_training = index < math.ceil(len(names) * 0.9)
            split = "val_ood" if number >= math.ceil(len(tasks) * 0.9) else "train" if is_training else "val_ind"
            length = len(list((task / name / "action").iterdir()))
            path = f"../processed_data/{folder.name}/{task.name}/{name}"
            found.append((split, task.name.replace("_", " "), path, length))
    return found


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

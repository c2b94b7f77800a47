"""LeRobot datasets with a file that is damaged at a place that a seed determines, and what comes of reading them."""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from lerobot_v21 import as_v21
from toy_source import ToySource

from vlatrack.data.episodes import Episode, episodes_digest, frame_digests, frame_pieces
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.errors import DataError

WRITTEN_BY_LEROBOT = Path(__file__).parents[1] / "data" / "fixtures" / "lerobot-v3-video"

Outcome = Literal["told", "unharmed", "unseen"]
"""Of a damaged dataset: at least one error; the very content of the whole one; or other content, without a word, which
can only be where the file has no checksum."""


@dataclass(frozen=True)
class Victim:
    """A dataset, and the file of it that is damaged; the folder is the trials' own."""

    name: str
    folder: Path
    file: str
    has_checksums: bool = False  # damage is never unseen

    @cached_property
    def whole(self) -> bytes:
        return (self.folder / self.file).read_bytes()

    @cached_property
    def content(self) -> Mapping[str, str]:
        """Of the whole dataset."""
        content, told = read_all(self.folder)
        assert not told, told
        return content

    def damage(self, seed: int) -> Outcome:
        """Read with one bit flipped, some bytes zero or anything, or the end cut off; then make it whole again.

        Anything but a DataError of one line, which names the file, goes on to the caller.
        """
        expected = self.content
        path = self.folder / self.file
        path.write_bytes(damaged(self.whole, seed))
        try:
            content, told = read_all(self.folder)
        finally:
            path.write_bytes(self.whole)
        for line in told:
            assert "\n" not in line, line
            assert str(self.folder) in line or path.name in line, line
        if told:
            return "told"
        return "unharmed" if content == expected else "unseen"


def victims(folder: Path) -> list[Victim]:
    """Datasets of all layouts and kinds of images, made anew below a folder; most are LeRobot's own work."""
    camera = "observation.images.corner2"
    new = Path(shutil.copytree(WRITTEN_BY_LEROBOT, folder / "new"))
    old = as_v21(WRITTEN_BY_LEROBOT, folder / "old")
    return [
        Victim("v3.0 table", new, "data/chunk-000/file-000.parquet"),
        Victim("v3.0 table of episodes", new, "meta/episodes/chunk-000/file-000.parquet"),
        Victim("v3.0 video (AV1)", new, f"videos/{camera}/chunk-000/file-000.mp4"),
        Victim("v3.0 info.json", new, "meta/info.json"),
        Victim("v2.1 table", old, "data/chunk-000/episode_000001.parquet"),
        Victim("v2.1 video (H.264)", old, f"videos/chunk-000/{camera}/episode_000001.mp4"),
        Victim("v2.1 lines of episodes", old, "meta/episodes.jsonl"),
        *small_victims(folder),
    ]


def small_victims(folder: Path) -> list[Victim]:
    """The same of a few small images, which are read in no time; tables that we write have checksums."""
    camera = "observation.images.front"
    new, images = small_dataset(folder / "small"), small_dataset(folder / "images", "png")
    old = as_v21(new, folder / "small old")
    return [
        Victim("our table", new, "data/chunk-000/file-000.parquet", has_checksums=True),
        Victim("our table of episodes", new, "meta/episodes/chunk-000/file-000.parquet", has_checksums=True),
        Victim("our table of images", images, "data/chunk-000/file-000.parquet", has_checksums=True),
        Victim("our video", new, f"videos/{camera}/chunk-000/file-000.mp4"),
        Victim("small v2.1 table", old, "data/chunk-000/episode_000001.parquet"),
        Victim("small v2.1 video", old, f"videos/chunk-000/{camera}/episode_000001.mp4"),
    ]


def damaged(content: bytes, seed: int) -> bytes:
    """What becomes of the content of a file."""
    draws = random.Random(seed)
    changed, place = bytearray(content), draws.randrange(len(content))
    match draws.choice(["bit", "bit", "zeros", "noise", "end", "end"]):
        case "bit":
            changed[place] ^= 1 << draws.randrange(8)
        case "zeros":
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        case "noise":
            changed[place : place + 64] = draws.randbytes(len(changed[place : place + 64]))
        case "end":
            del changed[place:]
    return bytes(changed)


def read_all(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What can be read, in short, and what is told of the rest."""
    content: dict[str, str] = {}
    told: list[str] = []
    try:
        dataset = LeRobotDataset(folder)
        content["about"] = json.dumps([dataset.cameras, dataset.fps, dataset.action_dim, dataset.state_dim])
        for episode in dataset.readable_episodes(lambda _, problem: told.append(str(problem))):
            content[f"episode {episode.index}"] = episodes_digest([episode])
            for camera in dataset.cameras:
                content[f"{camera} {episode.index}"] = _frames_digest(dataset, episode, camera)
    except DataError as problem:
        told.append(str(problem))
    return content, told


def _frames_digest(dataset: LeRobotDataset, episode: Episode, camera: str) -> str:
    digests = [frame_digests(piece) for piece in frame_pieces(dataset, episode, camera)]
    return np.concatenate(digests).tobytes().hex()


def small_dataset(folder: Path, storage: Literal["video", "png"] = "video") -> Path:
    """Three short episodes, 10 steps a second, that LeRobotWriter writes."""
    source, names = ToySource(episodes=3), ("x", "y")
    with LeRobotWriter(
        folder,
        fps=10,
        robot_type="square",
        cameras={"front": (32, 32)},
        action_names=names,
        state_names=names,
        storage=storage,
    ) as writer:
        for episode in source.episodes():
            frames = {"front": source.frames(episode, "front")}
            writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
    return folder

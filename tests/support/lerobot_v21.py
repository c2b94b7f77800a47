"""A dataset of LeRobot v3.0 laid out as v2.1: a table and a video file for each episode, metadata in JSON lines."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.video import VideoWriter

DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def as_v21(root: Path, target: Path, *, chunk_size: int = 1000, data_path: str = DATA, video_path: str = VIDEO) -> Path:
    """Write the dataset of `root` anew at `target`; videos are encoded once more, embedded images stay as they are."""
    source, info = LeRobotDataset(root), json.loads((root / "meta/info.json").read_text())
    rows = pa.concat_tables(pq.read_table(file) for file in sorted((root / "data").rglob("*.parquet")))
    episodes = source.episodes()
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    (target / "meta").mkdir(parents=True)
    for episode in episodes:
        numbers = {"episode_chunk": episode.index // chunk_size, "episode_index": episode.index}
        path = target / data_path.format(**numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        first = sum(earlier.length for earlier in episodes if earlier.index < episode.index)
        pq.write_table(rows.slice(first, episode.length), path)
        for camera in source.cameras if info["video_path"] else ():
            video = target / video_path.format(**numbers, video_key=camera)
            video.parent.mkdir(parents=True, exist_ok=True)
            height, width = source.image_size(camera)
            writer = VideoWriter(video, fps=int(source.fps), height=height, width=width)
            writer.add(source.frames(episode, camera))
            writer.close()
    lines = [{"episode_index": e.index, "tasks": [e.task], "length": e.length} for e in episodes]
    write_lines(target / "meta/episodes.jsonl", lines)
    write_lines(target / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    changes = {"codebase_version": "v2.1", "data_path": data_path, "chunks_size": chunk_size}
    info |= changes | {"video_path": video_path if info["video_path"] else None}
    (target / "meta/info.json").write_text(json.dumps(info))
    return target


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

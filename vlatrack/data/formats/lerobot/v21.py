"""The layout of LeRobot v2.0 and v2.1: a table and a video file for each episode, and metadata in JSON lines."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from vlatrack.data.formats.lerobot.entries import Clip, Entry, Layout, instructions
from vlatrack.data.formats.lerobot.layout import DatasetInfo
from vlatrack.errors import DataError

EPISODES = "meta/episodes.jsonl"
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"


class _Line(BaseModel):
    """One line of meta/episodes.jsonl."""

    model_config = ConfigDict(frozen=True)

    episode_index: int = Field(ge=0)
    length: int = Field(ge=0)
    tasks: JsonValue = None


def _read_entries(root: Path, info: DatasetInfo, cameras: Sequence[str]) -> list[Entry]:
    path = root / EPISODES
    entries = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    entries.append(_entry(f"{path}: line {number}", line, info.chunks_size, len(cameras)))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"{path}: cannot be read ({reason}); restore the file") from None
    return entries


def _entry(place: str, line: str, chunk_size: int, cameras: int) -> Entry:
    try:
        row = _Line.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{place}: {key or 'episode'}: {first['msg']}; restore the file") from None
    except (ValueError, RecursionError):
        raise DataError(f"{place}: damaged JSON; restore the file") from None
    files = (row.episode_index // chunk_size, row.episode_index)
    # Whether the video is there is only asked when somebody wants it: a set may lack some of them.
    clips = (Clip(files, 0.0),) * cameras
    return Entry(row.episode_index, instructions(row.tasks), row.length, files, clips)


V21 = Layout(("episode_chunk", "episode_index"), DATA, (".json", ".jsonl", ".parquet", ".mp4"), _read_entries)

"""The LeRobot v3.0 layout: its file names, and the parts of meta/info.json that matter here."""

import json
import re
from pathlib import Path, PurePosixPath
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveFloat, ValidationError

from vlatrack.errors import DataError

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_SIZE = 1000

_INTEGER_FORMAT = re.compile(r"(0?\d{1,2}d)?")


class Feature(BaseModel):
    """One feature of the dataset: a column, or a camera."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: tuple[int, ...]
    info: dict[str, JsonValue] | None = None

    @property
    def is_camera(self) -> bool:
        """Colour pictures, as a video or embedded; depth maps are not."""
        return self.dtype in ("video", "image") and not (self.info or {}).get("video.is_depth_map")


class DatasetInfo(BaseModel):
    """What meta/info.json says; keys that vlatrack has no use for are ignored."""

    model_config = ConfigDict(frozen=True)

    fps: PositiveFloat
    total_episodes: int = Field(ge=0)
    total_frames: int = Field(ge=0)
    features: dict[str, Feature]
    data_path: str = DATA
    video_path: str | None = None


def read_info(root: Path) -> DatasetInfo:
    """The checked meta/info.json of the dataset in `root`; raises DataError, one line."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a LeRobot dataset (it holds meta/info.json)")
    path = root / INFO
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{root}: no {INFO} in it; this is not a LeRobot dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: damaged JSON ({error}); restore the file") from None
    version = content.get("codebase_version") if isinstance(content, dict) else None
    if not (isinstance(version, str) and version.startswith("v3.")):
        raise DataError(
            f"{path}: layout version is {version!r}, vlatrack reads {VERSION}; convert the dataset with LeRobot's "
            "own script convert_dataset_v21_to_v30"
        )
    try:
        return DatasetInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}; correct the file") from None


def expand(template: str, *, chunk_index: int, file_index: int, video_key: str = "") -> str:
    """The path inside the dataset that a template of info.json names.

    Raises:
        DataError: the template has unknown placeholders, or its path would leave the dataset.
    """
    values = {"chunk_index": chunk_index, "file_index": file_index, "video_key": video_key}
    if not _is_understood(template):
        raise DataError(f"{INFO}: path template {template!r} is not understood; it should look like {DATA!r}")
    return inside(template.format_map(values))


def _is_understood(template: str) -> bool:
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return False
    return all(
        name is None or (conversion is None and ((name == "video_key" and not spec) or _is_index(name, spec)))
        for _, name, spec, conversion in parts
    )


def _is_index(name: str, spec: str | None) -> bool:
    return name in ("chunk_index", "file_index") and _INTEGER_FORMAT.fullmatch(spec or "") is not None


def inside(path: str) -> str:
    """`path` itself if it stays below the folder that it is relative to; else DataError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise DataError(f"{path!r}: this path of the dataset leaves its folder; the dataset is not to be trusted")
    return path

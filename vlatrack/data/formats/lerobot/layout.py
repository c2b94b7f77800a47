"""The LeRobot layouts: their file names, and meta/info.json as it is read and written (v3.0 alone is written)."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, ValidationError

from vlatrack.data.video import KEYFRAME_EVERY, QUALITY
from vlatrack.errors import DataError

VERSION = "v3.0"
READ_VERSIONS = ("v2.0", "v2.1", "v3.")
"""The layouts that are read, by the beginning of their version."""
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_SIZE = 1000
INTEGER_COLUMNS = ("frame_index", "episode_index", "index", "task_index")

_INTEGER_FORMAT = re.compile(r"(0?\d{1,2}d)?")
_NUMBER = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Feature(BaseModel):
    """One feature of the dataset: a column, or a camera."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: tuple[int, ...]
    info: dict[str, JsonValue] | None = None
    names: JsonValue = None

    @property
    def number_names(self) -> tuple[str, ...]:
        """The names of a vector's numbers, which some datasets put into a group; empty if there are none."""
        names = self.names
        if isinstance(names, dict) and len(names) == 1:
            (names,) = names.values()
        elif isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
            (names,) = names
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def is_camera(self) -> bool:
        """Colour images, as a video or embedded; depth maps are not."""
        return self.dtype in ("video", "image") and not (self.info or {}).get("video.is_depth_map")


class DatasetInfo(BaseModel):
    """The keys of meta/info.json that vlatrack uses; others are ignored."""

    model_config = ConfigDict(frozen=True)

    codebase_version: str
    fps: _NUMBER
    total_episodes: int = Field(ge=0)
    total_frames: int = Field(ge=0)
    chunks_size: PositiveInt = CHUNK_SIZE
    features: dict[str, Feature]
    data_path: str | None = None
    video_path: str | None = None


def read_info(root: Path) -> DatasetInfo:
    """Read and validate meta/info.json of the dataset in `root`; raises DataError, one line."""
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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged JSON ({error}); restore the file") from None
    version = content.get("codebase_version") if isinstance(content, dict) else None
    if not (isinstance(version, str) and version.startswith(READ_VERSIONS)):
        raise DataError(
            f"{path}: layout version is {version!r}, vlatrack reads v2.0, v2.1 and v3.0; convert the dataset with "
            "LeRobot's own scripts"
        )
    try:
        return DatasetInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}; correct the file") from None


def vector_size(root: Path, info: DatasetInfo, key: str) -> int:
    """Numbers in each value of a feature, the action or the state; raises DataError for one that is no vector."""
    feature = info.features.get(key)
    if feature is None:
        known = ", ".join(name for name, other in info.features.items() if other.dtype.startswith("float"))
        raise DataError(f"{root}: no feature {key!r} (action or state); its number features: {known or 'none'}")
    if len(feature.shape) != 1 or feature.shape[0] < 1 or not feature.dtype.startswith(("float", "int")):
        raise DataError(f"{root}: feature {key!r} is {feature.dtype} {list(feature.shape)}, not a vector of numbers")
    return feature.shape[0]


def expand(template: str, **values: int | str) -> str:
    """The path inside the dataset that a template of info.json names.

    Args:
        values: what its placeholders stand for: numbers, which it may pad with zeros, and names.

    Raises:
        DataError: the template has other placeholders, or its path would leave the dataset.
    """
    if not _is_understood(template, values):
        known = ", ".join(f"{{{name}}}" for name in values)
        raise DataError(f"{INFO}: path template {template!r} is not understood; it can have {known}")
    path = template.format_map(values)
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise DataError(f"{path!r}: this path of the dataset leaves its folder; do not trust this dataset")
    return path


def _is_understood(template: str, values: Mapping[str, int | str]) -> bool:
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return False
    return all(
        name is None or (conversion is None and name in values and _is_simple(values[name], spec))
        for _, name, spec, conversion in parts
    )


def _is_simple(value: int | str, spec: str | None) -> bool:
    return not spec if isinstance(value, str) else _INTEGER_FORMAT.fullmatch(spec or "") is not None


@dataclass(frozen=True)
class DatasetFormat:
    """The features of a dataset, by their full names (`observation.images.corner4`, `action`)."""

    fps: int
    robot_type: str
    cameras: Mapping[str, tuple[int, int]]  # height, width
    vectors: Mapping[str, tuple[str, ...]]  # the names of the numbers
    storage: Literal["video", "png"]

    def __post_init__(self) -> None:
        for key, (height, width) in self.cameras.items():
            if self.storage == "video" and (height % 2 or width % 2 or min(height, width) < 16):
                raise DataError(
                    f"{key}: {height} x {width} pixels; a video needs even sizes of at least 16, png does not"
                )

    def check_episode(
        self,
        place: str,
        vectors: Mapping[str, NDArray[np.float32]],
        frames: Mapping[str, NDArray[np.uint8]],
        in_pieces: Collection[str] = (),
    ) -> None:
        """Raise DataError, starting with `place`, if an episode does not fit; of cameras in pieces the name has to."""
        length = len(vectors["action"])
        expected: dict[str, tuple[int, ...]] = {key: (length, len(names)) for key, names in self.vectors.items()}
        expected |= {key: (length, *size, 3) for key, size in self.cameras.items()}
        given: dict[str, tuple[int, ...]] = {key: value.shape for key, value in vectors.items()}
        given |= {key: value.shape for key, value in frames.items()}
        given |= {key: expected.get(key, ()) for key in in_pieces}
        if length == 0:
            raise DataError(f"{place}: it has no steps; leave it out")
        for key in sorted(expected.keys() | given.keys()):
            if expected.get(key) != given.get(key):
                raise DataError(f"{place}: {key} has shape {given.get(key)}, the dataset expects {expected.get(key)}")
        for key, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise DataError(f"{place}: {key} has numbers that are not finite; leave this episode out")
        for key, images in frames.items():
            if images.dtype != np.uint8:
                raise DataError(f"{place}: {key} is {images.dtype}; images are uint8, 0 to 255")

    def info(self, *, episodes: int, frames: int, tasks: int, megabytes: tuple[float, float]) -> dict[str, object]:
        """The content of meta/info.json; `megabytes` are the limits of a data and of a video file."""
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": megabytes[0],
            "video_files_size_in_mb": megabytes[1],
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA,
            "video_path": VIDEO if self.storage == "video" else None,
            "features": self._features(),
        }

    def _features(self) -> dict[str, object]:
        features: dict[str, object] = {}
        for key, size in self.cameras.items():
            features[key] = {
                "dtype": "video" if self.storage == "video" else "image",
                "shape": [*size, 3],
                "names": ["height", "width", "channels"],
            } | ({"info": self._video_info(*size)} if self.storage == "video" else {})
        for key, names in self.vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        return features | {key: {"dtype": "int64", "shape": [1], "names": None} for key in INTEGER_COLUMNS}

    def _video_info(self, height: int, width: int) -> dict[str, object]:
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": 3,
            "video.g": KEYFRAME_EVERY,
            "video.crf": QUALITY,
            "has_audio": False,
        }

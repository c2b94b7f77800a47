"""What every episode of a LeRobot dataset that is being written has in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.formats.lerobot import layout
from vlatrack.data.formats.lerobot.tables import INTEGER_COLUMNS, data_schema
from vlatrack.data.video import KEYFRAME_EVERY, QUALITY
from vlatrack.errors import DataError

JsonObject = dict[str, object]


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
                raise DataError(f"{key}: {height} x {width} pixels; a video needs even sizes of at least 16")

    def table_schema(self) -> pa.Schema:
        """The schema of the frame table."""
        embedded = list(self.cameras) if self.storage == "png" else []
        return data_schema(image_keys=embedded, vectors={key: len(names) for key, names in self.vectors.items()})

    def check_episode(
        self, place: str, vectors: Mapping[str, NDArray[np.float32]], pictures: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """Raise DataError, beginning with `place`, where an episode does not fit."""
        length = len(vectors["action"])
        expected: dict[str, tuple[int, ...]] = {key: (length, len(names)) for key, names in self.vectors.items()}
        expected |= {key: (length, *size, 3) for key, size in self.cameras.items()}
        given: dict[str, tuple[int, ...]] = {key: value.shape for key, value in vectors.items()}
        given |= {key: value.shape for key, value in pictures.items()}
        if length == 0:
            raise DataError(f"{place}: it has no step; leave it out")
        for key in sorted(expected.keys() | given.keys()):
            if expected.get(key) != given.get(key):
                raise DataError(f"{place}: {key} has shape {given.get(key)}, the dataset expects {expected.get(key)}")
        for key, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise DataError(f"{place}: {key} has numbers that are not finite; leave this episode out")
        for key, picture in pictures.items():
            if picture.dtype != np.uint8:
                raise DataError(f"{place}: {key} is {picture.dtype}; pictures are uint8, 0 to 255")

    def info(self, *, episodes: int, frames: int, tasks: int, megabytes: tuple[float, float]) -> JsonObject:
        """The content of meta/info.json; `megabytes` are the limits of a data and of a video file."""
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": layout.CHUNK_SIZE,
            "data_files_size_in_mb": megabytes[0],
            "video_files_size_in_mb": megabytes[1],
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": layout.DATA,
            "video_path": layout.VIDEO if self.storage == "video" else None,
            "features": self._features(),
        }

    def _features(self) -> JsonObject:
        features: JsonObject = {}
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

    def _video_info(self, height: int, width: int) -> JsonObject:
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

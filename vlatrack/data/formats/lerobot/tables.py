"""The parquet tables of a LeRobot v3.0 dataset, column for column as LeRobot writes them, with their statistics."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.formats.lerobot.layout import INTEGER_COLUMNS

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Values = NDArray[np.float32 | np.int64]
NestedNumbers = list[float] | list[list[list[float]]]


def data_schema(*, image_keys: Sequence[str], vectors: Mapping[str, int]) -> pa.Schema:
    """The schema of the frame table: images embedded in it, vectors by their length, and the indexes."""
    fields = [pa.field(key, IMAGE_TYPE) for key in image_keys]
    fields += [pa.field(key, pa.list_(pa.field("element", pa.float32()), size)) for key, size in vectors.items()]
    fields += [pa.field("timestamp", pa.float32()), *(pa.field(key, pa.int64()) for key in INTEGER_COLUMNS)]
    hugging_face: dict[str, object] = {key: {"_type": "Image"} for key in image_keys}
    for key, size in vectors.items():
        hugging_face[key] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": size, "_type": "List"}
    hugging_face["timestamp"] = {"dtype": "float32", "_type": "Value"}
    hugging_face |= {key: {"dtype": "int64", "_type": "Value"} for key in INTEGER_COLUMNS}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": hugging_face}})})


def vector_column(values: Values) -> pa.Array:
    """[T, D] as a column of fixed-size lists."""
    element = pa.field("element", pa.float32())
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel(), type=pa.float32()), type=pa.list_(element, values.shape[1])
    )


def image_column(frames: Iterable[NDArray[np.uint8]]) -> pa.Array:
    """Frames, each [height, width, 3], as PNG files inside a column."""
    return pa.array(
        [{"bytes": _png(frame), "path": f"frame-{number:06d}.png"} for number, frame in enumerate(frames)],
        type=IMAGE_TYPE,
    )


def _png(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return buffer.getvalue()


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """task_index and the instruction, the latter marked as the index of a pandas frame, as LeRobot has it."""
    text_column = "__index_level_0__"
    columns: list[dict[str, str | None]] = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": text_column, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": [text_column],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [column | {"metadata": None} for column in columns],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), (text_column, pa.large_string())], metadata={"pandas": json.dumps(pandas)}
    )
    return pa.table([list(range(len(tasks))), list(tasks)], schema=schema)


@dataclass(frozen=True)
class FeatureStatistics:
    """min, max, mean, std and quantiles, each of the feature's shape, and the number of values behind them."""

    values: dict[str, NDArray[np.generic]]  # every name but "count"
    count: int

    def as_lists(self) -> dict[str, NestedNumbers]:
        """The form of stats.json and of the episode table, in the order of NAMES."""
        lists = {name: array.tolist() for name, array in self.values.items()} | {"count": [self.count]}
        return {name: lists[name] for name in NAMES}


def describe_values(values: Values) -> FeatureStatistics:
    """Statistics of a numeric feature, [T, D], per dimension; integers keep integer extremes."""
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    extremes = values if values.dtype == np.int64 else wide
    return FeatureStatistics(
        values={
            "min": extremes.min(axis=0),
            "max": extremes.max(axis=0),
            "mean": wide.mean(axis=0),
            "std": wide.std(axis=0),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        },
        count=len(values),
    )


@dataclass(frozen=True)
class PixelHistogram:
    """How often each of the 256 values occurs in each colour: exact statistics in constant memory."""

    counts: NDArray[np.int64]  # [3, 256]
    frames: int

    @classmethod
    def of(cls, frames: NDArray[np.uint8]) -> Self:
        """The histogram of frames, [T, height, width, 3]."""
        colours = [np.bincount(frames[..., colour].ravel(), minlength=256) for colour in range(3)]
        return cls(np.stack(colours), len(frames))

    def __add__(self, other: "PixelHistogram") -> "PixelHistogram":
        return PixelHistogram(self.counts + other.counts, self.frames + other.frames)

    def statistics(self) -> FeatureStatistics:
        """Per colour, on [0, 1], each of shape [3, 1, 1]; the count is that of the frames."""
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        cumulative = share.cumsum(axis=1)
        mean = share @ levels
        variance = share @ levels**2 - mean**2
        values = {
            "min": levels[(self.counts > 0).argmax(axis=1)],
            "max": levels[255 - (self.counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0)),
            **{name: levels[(cumulative >= q).argmax(axis=1)] for name, q in QUANTILES.items()},
        }
        return FeatureStatistics({name: value.reshape(3, 1, 1) for name, value in values.items()}, self.frames)


def statistics_columns(statistics: Mapping[str, FeatureStatistics]) -> dict[str, pa.Array]:
    """One cell `stats/<feature>/<statistic>` for each statistic of an episode."""
    columns: dict[str, pa.Array] = {}
    for feature, of_feature in statistics.items():
        lists = of_feature.as_lists()
        columns |= {f"stats/{feature}/{name}": pa.array([lists[name]]) for name in NAMES}
    return columns

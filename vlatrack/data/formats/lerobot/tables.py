"""The parquet tables of a LeRobot v3.0 dataset, column for column as LeRobot writes them."""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.formats.lerobot.statistics import NAMES, FeatureStatistics, Values

INTEGER_COLUMNS = ("frame_index", "episode_index", "index", "task_index")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def data_schema(*, image_keys: Sequence[str], vectors: Mapping[str, int]) -> pa.Schema:
    """The schema of the frame table: pictures embedded in it, vectors by their length, and the indexes."""
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


def image_column(frames: NDArray[np.uint8]) -> pa.Array:
    """Pictures, [T, height, width, 3], as PNG files inside a column."""
    return pa.array(
        [{"bytes": _png(picture), "path": f"frame-{number:06d}.png"} for number, picture in enumerate(frames)],
        type=IMAGE_TYPE,
    )


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
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


def statistics_columns(statistics: Mapping[str, FeatureStatistics]) -> dict[str, pa.Array]:
    """One cell `stats/<feature>/<statistic>` for each statistic of an episode."""
    columns: dict[str, pa.Array] = {}
    for feature, of_feature in statistics.items():
        lists = of_feature.as_lists()
        columns |= {f"stats/{feature}/{name}": pa.array([lists[name]]) for name in NAMES}
    return columns

"""The folder of a dataset as TensorFlow Datasets prepares it: its splits, their files, and its features."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlatrack.errors import DataError

INFO = "dataset_info.json"
FEATURES = "features.json"
STEPS = "steps"

_MOST_RECORDS = 10**8  # of a file; more are a damaged number
_FILE_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Feature:
    """One feature: numbers of a shape, a text, or an image."""

    kind: Literal["numbers", "text", "image", "other"]
    shape: tuple[int, ...] = ()  # of one step; -1: any
    dtype: str = ""

    @property
    def is_camera(self) -> bool:
        """Colour images; depth maps and masks are not."""
        return self.kind == "image" and self.dtype in ("", "uint8") and self.shape[-1:] == (3,)

    @property
    def size(self) -> int | None:
        """Numbers in a step, if it has numbers: a vector or a single one."""
        if self.kind != "numbers" or len(self.shape) > 1 or -1 in self.shape:
            return None
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class Layout:
    """What dataset_info.json and features.json say."""

    root: Path
    files: tuple[tuple[Path, int], ...]  # of the split, each with the number of its records
    steps: Mapping[str, Feature]  # those of each step, such as `observation/image`


def builder_folder(path: Path) -> Path:
    """The folder that holds dataset_info.json: the one given, or its only version.

    Raises:
        DataError: there is none, or there are several versions.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give the folder of an RLDS dataset (it holds {INFO})")
    if (path / INFO).is_file():
        return path
    versions = sorted(found.parent for found in path.glob(f"*/{INFO}"))
    if len(versions) != 1:
        found = f"{len(versions)} versions in it ({', '.join(v.name for v in versions)})" if versions else f"no {INFO}"
        raise DataError(f"{path}: {found}; give the folder of a version of an RLDS dataset")
    return versions[0]


def read_layout(root: Path, split: str) -> Layout:
    """The files of a split, and the features.

    Raises:
        DataError: a file is missing or damaged, or there is no such split.
    """
    info, features = _read_object(root / INFO), _read_object(root / FEATURES)
    found = dict(_features_below(features, ""))
    steps = {name.removeprefix(f"{STEPS}/"): of for name, of in found.items() if name.startswith(f"{STEPS}/")}
    if not steps:
        raise DataError(f"{root / FEATURES}: no {STEPS} in it; this is not an RLDS dataset")
    return Layout(root, tuple(_files(root, info, split)), steps)


def _files(root: Path, info: Mapping[str, Any], split: str) -> Iterator[tuple[Path, int]]:
    place = root / INFO
    kind = info.get("fileFormat", "tfrecord")
    if kind != "tfrecord":
        raise DataError(f"{place}: its files are {kind!r}; vlatrack reads tfrecord, write the dataset as such")
    listed = [found for found in _list(info.get("splits")) if isinstance(found, dict)]
    splits = {str(found.get("name")): found for found in listed}
    if split not in splits:
        raise DataError(f"{place}: no split {split!r}; its splits: {', '.join(splits) or 'none'}")
    name, template = info.get("name"), splits[split].get("filepathTemplate") or _FILE_NAME
    try:
        counts = [int(count) for count in _list(splits[split].get("shardLengths"))]
    except (TypeError, ValueError):
        counts = []
    if (
        not counts
        or not all(0 <= count <= _MOST_RECORDS for count in counts)
        or not isinstance(name, str)
        or not isinstance(template, str)
    ):
        raise DataError(f"{place}: no name, or no shardLengths of {split}; restore the file")
    for number, count in enumerate(counts):
        known = {"DATASET": name, "SPLIT": split, "FILEFORMAT": kind}
        known |= {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{len(counts):05d}"}
        known |= {"SHARD_X_OF_Y": f"{number:05d}-of-{len(counts):05d}"}
        file_name = template
        for placeholder, value in known.items():
            file_name = file_name.replace(f"{{{placeholder}}}", value)
        if Path(file_name).name != file_name or "{" in file_name or "\0" in file_name:
            raise DataError(f"{place}: {file_name!r} is no name of a file in its folder; do not trust this dataset")
        yield root / file_name, count


def _features_below(node: Mapping[str, Any], name: str) -> Iterator[tuple[str, Feature]]:
    """The features of a tree; a sequence has the name of what it is a sequence of."""
    inner = _object(_object(node.get("featuresDict")).get("features"))
    if inner:
        for key, child in inner.items():
            yield from _features_below(_object(child), f"{name}/{key}" if name else key)
    elif "sequence" in node and name == STEPS:
        yield from _features_below(_object(_object(node["sequence"]).get("feature")), name)
    else:
        yield name, _feature(node)


def _feature(node: Mapping[str, Any]) -> Feature:
    if "text" in node:
        return Feature("text")
    if "image" in node:
        image = _object(node["image"])
        return Feature("image", _shape(image), str(image.get("dtype", "")))
    tensor = _object(node.get("tensor"))
    dtype = str(tensor.get("dtype", ""))
    if dtype == "string" and not _shape(tensor):
        return Feature("text")
    numbers = dtype.startswith(("float", "int", "uint", "bool")) and tensor.get("encoding", "none") in ("", "none")
    return Feature("numbers" if numbers else "other", _shape(tensor), dtype)


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in _list(_object(node.get("shape")).get("dimensions")))
    except (TypeError, ValueError):
        return (-1,)


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged JSON ({error}); restore the file") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; restore the file")
    return content


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

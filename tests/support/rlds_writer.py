"""Writes RLDS datasets as TensorFlow Datasets prepares them, by Google's protocol buffers instead of our own code."""

import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from vlatrack.data.episodes import Episode, EpisodeSource

Values = Sequence[bytes] | np.ndarray


@functools.cache
def example_class() -> Any:
    """`tf.train.Example`, declared as TensorFlow's example.proto and feature.proto do."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, of in (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64)):
        file.message_type.add(name=name).field.add(name="value", number=1, label=field.LABEL_REPEATED, type=of)

    def messages(owner: Any, name: str, number: int, of: str, label: int = field.LABEL_OPTIONAL) -> Any:
        return owner.field.add(
            name=name, number=number, label=label, type=field.TYPE_MESSAGE, type_name=f".tensorflow.{of}"
        )

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        messages(feature, name, number, of).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    messages(entry, "value", 2, "Feature")
    messages(features, "feature", 1, "Features.FeatureEntry", field.LABEL_REPEATED)
    messages(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def example(features: Mapping[str, Values]) -> bytes:
    """A serialised Example: lists of bytes, floats or integers by their names."""
    built = example_class()()
    for name, values in features.items():
        feature = built.features.feature[name]
        if not isinstance(values, np.ndarray):
            feature.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            feature.float_list.value.extend(values.ravel().tolist())
        else:
            feature.int64_list.value.extend(values.astype(np.int64).ravel().tolist())
    return built.SerializeToString()


def framed(content: bytes) -> bytes:
    """A TFRecord."""
    length = len(content).to_bytes(8, "little")
    return length + masked_crc32c(length) + content + masked_crc32c(content)


def masked_crc32c(content: bytes) -> bytes:
    """Bit by bit, as the polynomial says, with a table of bytes."""
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum = checksum >> 8 ^ _crc_table()[(checksum ^ byte) & 0xFF]
    checksum ^= 0xFFFFFFFF
    return (((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


def episode_features(source: EpisodeSource, episode: Episode, image_format: str = "PNG") -> dict[str, Values]:
    """What TensorFlow Datasets stores of an episode, whose images are those of the source's cameras."""
    steps = np.arange(episode.length)
    features: dict[str, Values] = {
        "episode_metadata/file_path": [f"/raw/{episode.index}.npy".encode()],
        "steps/action": episode.actions,
        "steps/is_first": steps == 0,
        "steps/is_last": steps == episode.length - 1,
        "steps/language_instruction": [episode.task.encode()] * episode.length,
        "steps/reward": (steps == episode.length - 1).astype(np.float32),
    }
    if episode.states is not None:
        features["steps/observation/state"] = episode.states
    for camera in source.cameras:
        frames = source.frames(episode, camera)
        features[f"steps/observation/{camera}"] = [encoded(frame, image_format) for frame in frames]
    return features


def encoded(frame: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format=image_format)
    return buffer.getvalue()


def write_rlds(
    folder: Path,
    records: Sequence[Mapping[str, Values]],
    *,
    steps: Mapping[str, Any],
    shards: int = 2,
    split: str = "train",
    name: str = "squares",
) -> Path:
    """A dataset of these records in so many files, with `steps` as the features of a step in features.json."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(len(records)), shards)
    for number, part in enumerate(parts):
        file = folder / f"{name}-{split}.tfrecord-{number:05d}-of-{shards:05d}"
        file.write_bytes(b"".join(framed(example(records[index])) for index in part))
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [{"name": split, "numBytes": "0", "shardLengths": [str(len(part)) for part in parts]}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    inner = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"} | _tree(steps)
    of_steps = {
        "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
        "sequence": {"feature": inner, "length": "-1"},
    }
    metadata = _tree({"file_path": text()})
    features = {"featuresDict": {"features": {"steps": of_steps, "episode_metadata": metadata}}}
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}


def image(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    return {"image": {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": dtype}}


def text() -> dict[str, Any]:
    return {"text": {}}


def steps_of(source: EpisodeSource, height: int, width: int) -> dict[str, Any]:
    """The features of a step of `episode_features`."""
    observation = {camera: image(height, width, 3) for camera in source.cameras}
    return {
        "action": tensor(source.action_dim),
        "is_first": tensor(dtype="bool"),
        "is_last": tensor(dtype="bool"),
        "language_instruction": text(),
        "reward": tensor(),
        "observation": observation | ({"state": tensor(source.state_dim)} if source.state_dim else {}),
    }


def _tree(features: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {"tensor", "image", "text"}
    nodes = {name: node if leaves & node.keys() else _tree(node) for name, node in features.items()}
    return {"featuresDict": {"features": nodes}}

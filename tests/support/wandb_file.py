"""Reads what the wandb client wrote offline: a header, and the blocks of a LevelDB log, one protobuf record each."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _FILE_HEADER, _CHUNK_HEADER = 1 << 15, 7, struct.Struct("<IHB")
_FULL, _LAST = 1, 4


def offline_rows(path: Path) -> list[dict[str, Any]]:
    """The history rows of a `.wandb` file."""
    histories = [record.history for record in _records(path) if record.HasField("history")]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in histories
    ]


def offline_exit_code(path: Path) -> int | None:
    """How the run of a `.wandb` file ended; None if it has not."""
    codes = [record.exit.exit_code for record in _records(path) if record.HasField("exit")]
    return codes[-1] if codes else None


def offline_group(path: Path) -> str:
    """The group of the run in a `.wandb` file; empty for one without."""
    return next(record.run.run_group for record in _records(path) if record.HasField("run"))


def offline_artifacts(path: Path) -> list[str]:
    """The names of the artifacts in a `.wandb` file."""
    return [record.artifact.name for record in _records(path) if record.HasField("artifact")]


def _records(path: Path) -> Iterator[Record]:
    return map(Record.FromString, _payloads(path.read_bytes()))


def _payloads(content: bytes) -> Iterator[bytes]:
    at, payload = _FILE_HEADER, b""
    while at + _CHUNK_HEADER.size <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK_HEADER.size:
            at += left
            continue
        _, size, kind = _CHUNK_HEADER.unpack_from(content, at)
        at += _CHUNK_HEADER.size
        payload += content[at : at + size]
        at += size
        if kind in (_FULL, _LAST):
            yield payload
            payload = b""

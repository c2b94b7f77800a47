"""Writes finished token rows, for `vlatrack.data.rows` to read."""

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlatrack.data.rows import MAGIC, ROWS_OF_A_BATCH, SCHEMA, TRAILER, Ids32
from vlatrack.data.store.verified_files import UNFINISHED, remove_abandoned, telling_write_errors
from vlatrack.tokens.layout import IGNORED_LABEL

_LARGEST_SHORT = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Row:
    """One row before it is stored."""

    ids: Ids32  # [S]
    labels: Ids32  # [S], -100 where nothing is predicted

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1, self.ids.shape
        assert self.ids.shape == self.labels.shape, (self.ids.shape, self.labels.shape)

    @property
    def answer(self) -> tuple[int, int] | None:
        """From where to before where the labels are the ids, if they are -100 everywhere else."""
        labelled = np.flatnonzero(self.labels != IGNORED_LABEL)
        start, stop = (int(labelled[0]), int(labelled[-1]) + 1) if len(labelled) else (0, 0)
        is_span = len(labelled) == stop - start and np.array_equal(self.labels[start:stop], self.ids[start:stop])
        return (start, stop) if is_span else None


def write_rows(file: Path, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Write rows beside a file, and rename them to it when they are whole and on the disk.

    Args:
        rows: read one by one, while they are written.
        about: JSON values that are kept with them, for `TokenRows.about`.

    Raises:
        DataError: they cannot be written; what has been written is removed, as it is when `rows` raises.
    """
    # A name of its own: two runs that start together must not write into one another's file.
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with _may_fail(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(file.parent)
            sink = pa.OSFile(str(unfinished), "wb")
        with sink:
            fingerprint, count = _write_arrow(sink, rows, file)
        with _may_fail(file):
            _append_trailer(unfinished, {**about, "fingerprint": fingerprint, "rows": count})
            unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_arrow(sink: pa.NativeFile, rows: Iterable[Row], file: Path) -> tuple[str, int]:
    """The rows in record batches of the same number each; their fingerprint, and how many they are."""
    fingerprint, count = hashlib.sha256(), 0
    with _may_fail(file):
        writer = pa.ipc.new_file(sink, SCHEMA)
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, ROWS_OF_A_BATCH)):
        for row in batch:
            fingerprint.update(len(row.ids).to_bytes(8, "little"))
            fingerprint.update(row.ids.tobytes())
            fingerprint.update(row.labels.tobytes())
        with _may_fail(file):
            writer.write_batch(_record_batch(batch))
        count += len(batch)
    with _may_fail(file):
        writer.close()
    return fingerprint.hexdigest(), count


def _record_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    answers = [row.answer for row in rows]
    ids = np.concatenate([row.ids for row in rows])
    offsets = pa.array(np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32))
    is_short = ids.min(initial=0) >= 0 and ids.max(initial=0) <= _LARGEST_SHORT
    none = pa.nulls(len(rows))
    listed = pa.ListArray.from_arrays(offsets, pa.array(ids.astype(np.uint16) if is_short else ids))
    spans = np.array([answer or (0, 0) for answer in answers], np.int32)
    labelled = [np.flatnonzero(row.labels != IGNORED_LABEL) for row in rows]
    first = [row.labels[at[0]] if len(at) else -1 for row, at in zip(rows, labelled, strict=True)]
    own = [row.labels if answer is None else None for row, answer in zip(rows, answers, strict=True)]
    columns = [
        listed if is_short else none.cast(SCHEMA.field("ids").type),
        none.cast(SCHEMA.field("wide_ids").type) if is_short else listed,
        pa.array(spans[:, 0]),
        pa.array(spans[:, 1]),
        pa.array(np.array(first, np.int32)),
        pa.array(own, SCHEMA.field("labels").type),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _append_trailer(file: Path, about: Mapping[str, Any]) -> None:
    """What stands behind the Arrow content, and everything on the disk."""
    described = json.dumps(about).encode()
    with file.open("r+b") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(described)
        stream.flush()
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").digest()
        stream.seek(0, os.SEEK_END)
        stream.write(TRAILER.pack(MAGIC, len(described), digest))
        stream.flush()
        os.fsync(stream.fileno())


def _may_fail(file: Path) -> AbstractContextManager[None]:
    return telling_write_errors(file, "token rows", "make its folder writable")

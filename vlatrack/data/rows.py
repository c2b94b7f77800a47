"""Finished token rows in a memory-mapped Arrow file.

Rows of a few hundred to a few thousand ids stand one behind the other, as 16-bit numbers where the vocabulary allows
it. Labels are a span of the ids wherever they are -100 on the prompt and the ids themselves on the answer, and are
stored only where they are not. Processes that read one file share its pages.

Behind the Arrow content stands its SHA-256, as a file that is cut off, zeroed or another one must not be read.
"""

import hashlib
import itertools
import json
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.errors import DataError
from vlatrack.tokens.layout import IGNORED_LABEL
from vlatrack.tokens.prompts import TokenSequence

_ROWS_OF_A_BATCH = 1024
_LARGEST_SHORT = np.iinfo(np.uint16).max
_SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.uint16())),  # of a batch of which every id fits into 16 bits; else
        ("wide_ids", pa.list_(pa.int32())),
        ("answer_start", pa.int32()),
        ("answer_stop", pa.int32()),
        ("first_answer_id", pa.int32()),
        ("labels", pa.list_(pa.int32())),  # of a row whose labels are no span of its ids
    ]
)
_TRAILER = struct.Struct("<8sI32s")  # behind the Arrow content and JSON about it: magic, size of the JSON, SHA-256
_MAGIC = b"vlarows1"
_UNFINISHED = ".partial"
_ABANDONED_AFTER_S = 24 * 3600.0  # a file that somebody writes grows every second or so

Ids32 = NDArray[np.int32]


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


class TokenRows:
    """The rows of a file that `write_rows` has written, in their order.

    Args:
        file: it stays memory-mapped.
        verify: compare its content with its checksum, which reads all of it.

    Raises:
        DataError: there is no such file, or it is damaged.
    """

    def __init__(self, file: Path, *, verify: bool = True) -> None:
        self.file = file
        try:
            with pa.memory_map(str(file)) as mapped:
                whole = mapped.read_buffer()
            arrow, about = _parts(whole, verify=verify)
            stored = pa.ipc.open_file(arrow)
            batches = [stored.get_batch(number) for number in range(stored.num_record_batches)]
        except FileNotFoundError:
            raise DataError(f"{file}: no such file of token rows") from None
        except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow raises either for a file that is cut off
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{file}: damaged ({reason[:100]}); remove it, and it is written anew") from None
        self.about: Mapping[str, Any] = about
        self._batches = [_StoredBatch.of(batch) for batch in batches]
        self._lengths = _joined(np.diff(batch.offsets) for batch in self._batches)

    def __reduce__(self) -> tuple[object, ...]:
        """Another process maps the file itself, and need not compare its checksum again."""
        return partial(TokenRows, verify=False), (self.file,)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Ids32:
        """The number of ids of each row."""
        return self._lengths

    @property
    def first_answer_ids(self) -> Ids32:
        """The first id that each row predicts, which tells an action chunk from an image; -1 if it predicts nothing."""
        return _joined(batch.first_answer_ids for batch in self._batches)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the ids and labels of all rows: the same wherever they came from."""
        return str(self.about["fingerprint"])

    def row(self, number: int) -> TokenSequence:
        """Row `number` as ids and labels."""
        stored, place = self._batches[number // _ROWS_OF_A_BATCH], number % _ROWS_OF_A_BATCH
        ids = stored.ids[stored.offsets[place] : stored.offsets[place + 1]].astype(np.int64)
        if stored.has_labels[place]:
            own = stored.labels[stored.label_offsets[place] : stored.label_offsets[place + 1]]
            return TokenSequence(ids, own.astype(np.int64))
        labels = np.full(len(ids), IGNORED_LABEL, np.int64)
        answer = slice(stored.answer_starts[place], stored.answer_stops[place])
        labels[answer] = ids[answer]
        return TokenSequence(ids, labels)

    def batch(self, numbers: Iterable[int]) -> list[TokenSequence]:
        """The rows of these numbers, in their order."""
        return [self.row(number) for number in numbers]

    def padded(self, numbers: Sequence[int], *, length: int, pad: int) -> "PaddedRows":
        """The rows of these numbers padded on the right to a length, which none of them exceeds."""
        ids = np.full((len(numbers), length), pad, np.int64)
        starts, stops, are_spans = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64), True
        for row, number in enumerate(numbers):
            stored, place = self._batches[number // _ROWS_OF_A_BATCH], number % _ROWS_OF_A_BATCH
            begin = stored.offsets[place]
            size = stored.offsets[place + 1] - begin
            ids[row, :size] = stored.ids[begin : begin + size]
            starts[row], stops[row] = stored.answer_starts[place], stored.answer_stops[place]
            are_spans = are_spans and not stored.has_labels[place]
        return PaddedRows(ids, starts, stops, are_spans)

    def pieces(self) -> Iterator["RowPiece"]:
        """All rows, by about a thousand neighbours, for what reads them all."""
        first = 0
        for stored in self._batches:
            begin, end = stored.offsets[0], stored.offsets[-1]
            starts, stops = stored.answer_starts, stored.answer_stops
            yield RowPiece(first, stored.ids[begin:end], stored.offsets - begin, starts, stops, stored.has_labels)
            first += len(starts)


@dataclass(frozen=True)
class PaddedRows:
    """Rows of one length, and the spans of their answers."""

    ids: NDArray[np.int64]  # [rows, length]
    answer_starts: NDArray[np.int64]  # [rows]
    answer_stops: NDArray[np.int64]  # [rows]
    are_spans: bool  # whether these spans are all labels that they have


@dataclass(frozen=True)
class RowPiece:
    """Neighbouring rows, one behind the other. Its arrays are views of the file.

    Legend: R = rows, I = ids of all of them.
    """

    first: int  # the number of its first row
    ids: NDArray[Any]  # uint16 or int32 [I]
    offsets: Ids32  # [R + 1] where each row begins in `ids`, and the last one ends
    answer_starts: Ids32  # [R] where in its row the answer begins
    answer_stops: Ids32  # [R] and ends
    has_labels: NDArray[np.bool_]  # [R] whether its labels are no such span


@dataclass(frozen=True)
class _StoredBatch:
    """The columns of one record batch, as views of the file."""

    ids: NDArray[Any]  # uint16 or int32, of all rows
    offsets: Ids32  # [rows + 1] where each begins in `ids`
    answer_starts: Ids32  # [rows]
    answer_stops: Ids32  # [rows]
    first_answer_ids: Ids32  # [rows]
    has_labels: NDArray[np.bool_]  # [rows]
    labels: Ids32  # of the rows that have labels of their own
    label_offsets: Ids32  # [rows + 1]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_StoredBatch":
        short, wide, labels = (batch.column(name) for name in ("ids", "wide_ids", "labels"))
        ids = wide if short.null_count else short
        return cls(
            ids=ids.values.to_numpy(),
            offsets=ids.offsets.to_numpy(),
            answer_starts=batch.column("answer_start").to_numpy(),
            answer_stops=batch.column("answer_stop").to_numpy(),
            first_answer_ids=batch.column("first_answer_id").to_numpy(),
            has_labels=labels.is_valid().to_numpy(zero_copy_only=False),
            labels=labels.values.to_numpy(),
            label_offsets=labels.offsets.to_numpy(),
        )


def write_rows(file: Path, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Write rows beside a file, and rename them to it when they are whole and on the disk.

    Args:
        rows: read one by one, while they are written.
        about: JSON values that are kept with them, for `TokenRows.about`.

    Raises:
        DataError: they cannot be written; what has been written is removed, as it is when `rows` raises.
    """
    # A name of its own: two runs that start together must not write into one another's file.
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with _may_fail(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(file.parent)
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
        writer = pa.ipc.new_file(sink, _SCHEMA)
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, _ROWS_OF_A_BATCH)):
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
        listed if is_short else none.cast(_SCHEMA.field("ids").type),
        none.cast(_SCHEMA.field("wide_ids").type) if is_short else listed,
        pa.array(spans[:, 0]),
        pa.array(spans[:, 1]),
        pa.array(np.array(first, np.int32)),
        pa.array(own, _SCHEMA.field("labels").type),
    ]
    return pa.record_batch(columns, schema=_SCHEMA)


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
        stream.write(_TRAILER.pack(_MAGIC, len(described), digest))
        stream.flush()
        os.fsync(stream.fileno())


def _parts(whole: pa.Buffer, *, verify: bool) -> tuple[pa.Buffer, dict[str, Any]]:
    """The Arrow content of a file and what is kept about it; ValueError if it is damaged."""
    end = whole.size - _TRAILER.size
    if end < 0:
        raise ValueError("cut off")
    magic, size, digest = _TRAILER.unpack(whole[end:].to_pybytes())
    if magic != _MAGIC or size > end:
        raise ValueError("cut off, or no file of token rows of this version")
    if verify and hashlib.sha256(whole[:end]).digest() != digest:
        raise ValueError("its checksum is another")
    about = json.loads(whole[end - size : end].to_pybytes())
    return whole[: end - size], about


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left unfinished."""
    for file in folder.glob(f"*{_UNFINISHED}"):
        with suppress(FileNotFoundError, PermissionError):  # another process has just finished or removed it
            if time.time() - file.stat().st_mtime > _ABANDONED_AFTER_S:
                file.unlink()


def _joined(arrays: Iterable[Ids32]) -> Ids32:
    found = list(arrays)
    return np.concatenate(found) if found else np.empty(0, np.int32)


@contextmanager
def _may_fail(file: Path) -> Iterator[None]:
    """Tell in one line why rows cannot be written: a full disk, a quota, permissions."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise DataError(
            f"{file}: token rows cannot be written ({reason}); free space or make its folder writable"
        ) from None

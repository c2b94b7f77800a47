"""Finished token rows in a memory-mapped Arrow file.

Rows of a few hundred to a few thousand ids stand one behind the other, as 16-bit numbers where the vocabulary allows
it. Labels are a span of the ids wherever they are -100 on the prompt and the ids themselves on the answer, and are
stored only where they are not. Processes that read one file share its pages.

Behind the Arrow content stands its SHA-256, as a file that is cut off, zeroed or another one must not be read.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.errors import DataError
from vlatrack.tokens.layout import IGNORED_LABEL
from vlatrack.tokens.prompts import TokenSequence

ROWS_OF_A_BATCH = 1024
SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.uint16())),  # of a batch of which every id fits into 16 bits; else
        ("wide_ids", pa.list_(pa.int32())),
        ("answer_start", pa.int32()),
        ("answer_stop", pa.int32()),
        ("first_answer_id", pa.int32()),
        ("labels", pa.list_(pa.int32())),  # of a row whose labels are no span of its ids
    ]
)
TRAILER = struct.Struct("<8sI32s")  # behind the Arrow content and JSON about it: magic, size of the JSON, SHA-256
MAGIC = b"vlarows1"

DEFAULT_TYPE = "default"
"""Of rows whose list has no other."""

Ids32 = NDArray[np.int32]


class TokenRows:
    """The rows of a file that `row_writer.write_rows` has written, in their order.

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

    @cached_property
    def lists(self) -> tuple["RowList", ...]:
        """The lists that the rows come from, in their order."""
        told = self.about.get("lists", [{"start": 0, "stop": len(self), "ratio": 1.0, "type": DEFAULT_TYPE}])
        return tuple(RowList(each["start"], each["stop"], each["ratio"], each["type"]) for each in told)

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
        stored, place = self._batches[number // ROWS_OF_A_BATCH], number % ROWS_OF_A_BATCH
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
            stored, place = self._batches[number // ROWS_OF_A_BATCH], number % ROWS_OF_A_BATCH
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
class RowList:
    """Rows that were listed together."""

    start: int  # the number of its first row
    stop: int  # and of the first behind it
    ratio: float  # of its rows that an epoch shows, above 0 and at most 1
    type: str

    @property
    def shown(self) -> int:
        """How many of its rows an epoch shows: rounded down, as in the reference."""
        return int((self.stop - self.start) * self.ratio)


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


def _parts(whole: pa.Buffer, *, verify: bool) -> tuple[pa.Buffer, dict[str, Any]]:
    """The Arrow content of a file and what is kept about it; ValueError if it is damaged."""
    end = whole.size - TRAILER.size
    if end < 0:
        raise ValueError("cut off")
    magic, size, digest = TRAILER.unpack(whole[end:].to_pybytes())
    if magic != MAGIC or size > end:
        raise ValueError("cut off, or no file of token rows of this version")
    if verify and hashlib.sha256(whole[:end]).digest() != digest:
        raise ValueError("its checksum is another")
    about = json.loads(whole[end - size : end].to_pybytes())
    return whole[: end - size], about


def _joined(arrays: Iterable[Ids32]) -> Ids32:
    found = list(arrays)
    return np.concatenate(found) if found else np.empty(0, np.int32)

"""The content of a record: a `tf.train.Example`, in the wire format of protocol buffers.

Only what is asked for is read of it. An Example has Features (field 1), these have entries (1) of a name (1) and a
Feature (2), and that has one of three lists: of bytes (1), of 32-bit floats (2) or of 64-bit integers (3).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.formats.rlds.records import DamagedRecordError, Record, Window

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10
_LISTS: dict[int, Literal["bytes", "floats", "integers"]] = {1: "bytes", 2: "floats", 3: "integers"}


class Span(NamedTuple):
    """A stretch of a record."""

    start: int
    stop: int


class _Field(NamedTuple):
    number: int
    wire: int
    span: Span


@dataclass(frozen=True)
class Feature:
    """The values of one feature, and where they are."""

    kind: Literal["bytes", "floats", "integers"]
    place: Span


class Example:
    """The features of a record by their names, such as `steps/action`."""

    def __init__(self, record: Record) -> None:
        self._window = Window(record)
        self.features = dict(self._entries())

    def numbers(self, name: str) -> NDArray[np.float32 | np.int64]:
        """The values of a feature that has numbers; raises DamagedRecordError if it has none."""
        feature = self.features.get(name)
        if feature is None or feature.kind == "bytes":
            raise DamagedRecordError(f"{name} has no numbers")
        runs = []
        for _, wire, span in self._fields(feature.place, wanted=1):
            content = self._window.read(span.start, span.stop - span.start)
            if feature.kind == "integers":
                if wire not in (_VARINT, _DELIMITED):
                    raise DamagedRecordError(f"{name} has no integers")
                runs.append(_integers(content))
            elif wire not in (_FOUR_BYTES, _DELIMITED) or len(content) % 4:
                raise DamagedRecordError(f"{name} has no floats")
            else:
                runs.append(np.frombuffer(content, "<f4").astype(np.float32))
        empty: NDArray[np.float32 | np.int64] = np.zeros(0, np.float32 if feature.kind == "floats" else np.int64)
        return np.concatenate([empty, *runs])

    def spans(self, name: str) -> list[Span]:
        """Where the values of a feature that has texts or images are; raises DamagedRecordError if it has none."""
        feature = self.features.get(name)
        if feature is None or feature.kind != "bytes":
            raise DamagedRecordError(f"{name} has no texts or images")
        return [span for _, wire, span in self._fields(feature.place, wanted=1) if _is_delimited(wire)]

    def content(self, span: Span) -> bytes:
        """The bytes of a value."""
        return self._window.read(span.start, span.stop - span.start)

    def _entries(self) -> Iterator[tuple[str, Feature]]:
        whole = Span(0, self._window.length)
        for features in self._messages(whole, 1):
            for entry in self._messages(features, 1):
                names, values = list(self._messages(entry, 1)), list(self._messages(entry, 2))
                if len(names) != 1 or len(values) != 1:
                    raise DamagedRecordError("a feature without a name or without values")
                lists = list(self._fields(values[0]))
                if not lists:
                    continue  # a feature that is not set
                number, wire, span = lists[-1]
                if number not in _LISTS or wire != _DELIMITED:
                    raise DamagedRecordError("a feature of an unknown type")
                try:
                    yield self.content(names[0]).decode(), Feature(_LISTS[number], span)
                except UnicodeDecodeError:
                    raise DamagedRecordError("the name of a feature is no text") from None

    def _messages(self, within: Span, number: int) -> Iterator[Span]:
        return (span for _, wire, span in self._fields(within, wanted=number) if _is_delimited(wire))

    def _fields(self, within: Span, wanted: int | None = None) -> Iterator[_Field]:
        """The fields of a message, or those of a number, one after another."""
        at = within.start
        while at < within.stop:
            key, at = self._varint(at, within.stop)
            number, wire = key >> 3, key & 7
            if wire == _DELIMITED:
                size, at = self._varint(at, within.stop)
            elif wire == _VARINT:
                size = self._varint(at, within.stop)[1] - at
            elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
                size = 8 if wire == _EIGHT_BYTES else 4
            else:
                raise DamagedRecordError("a field of an unknown type")
            if at + size > within.stop:
                raise DamagedRecordError("a length in it points beyond its end")
            if wanted in (None, number):
                yield _Field(number, wire, Span(at, at + size))
            at += size

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """A number of seven bits a byte, least significant first, and where the next field begins."""
        content = self._window.read(at, min(_LONGEST_VARINT, stop - at))
        value = 0
        for place, byte in enumerate(content):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, at + place + 1
        raise DamagedRecordError("a number without an end")


def _is_delimited(wire: int) -> bool:
    if wire != _DELIMITED:
        raise DamagedRecordError("a field of another type than expected")
    return True


def _integers(content: bytes) -> NDArray[np.int64]:
    """Packed varints; negative ones have ten bytes."""
    stored = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(stored < 0x80)
    if len(ends) == len(stored):  # flags and other small numbers
        return stored.astype(np.int64)
    if stored[-1] >= 0x80:
        raise DamagedRecordError("a number without an end")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _LONGEST_VARINT:
        raise DamagedRecordError("a number of more than 64 bits")
    shifts = 7 * (np.arange(len(stored)) - np.repeat(ends - lengths + 1, lengths)).astype(np.uint64)
    parts = (stored & 0x7F).astype(np.uint64) << shifts
    return np.add.reduceat(parts, ends - lengths + 1).view(np.int64)

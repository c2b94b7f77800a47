"""Files of TFRecords: where each record is, and that it is whole.

A record is its length (8 bytes, little-endian), a checksum of that, the content, and a checksum of it. A checksum is a
CRC-32C, rotated by 15 bits with a constant added, so that the checksum of data which contain checksums stays good.
"""

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlatrack.errors import DataError, MissingPackageError

_LENGTH, _CHECKSUM = 8, 4
_HEADER = _LENGTH + _CHECKSUM
_MASK = 0xA282EAD8
_PIECE_BYTES = 1 << 20


class DamagedRecordError(DataError):
    """A record, or what is in it, is not what it should be; the message says what is wrong."""


@dataclass(frozen=True)
class Record:
    """The content of one record, read as it is asked for: an episode may have hundreds of megabytes of images."""

    descriptor: int
    start: int  # in the file
    length: int

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from `at` on; raises DamagedRecordError where they are not there."""
        if size < 0 or at < 0 or at + size > self.length:
            raise DamagedRecordError("a length in it points beyond its end")
        return _read(self.descriptor, self.start + at, size)

    def check(self) -> None:
        """Raise DamagedRecordError if the content is not that of its checksum."""
        checksum = 0
        for at in range(0, self.length, _PIECE_BYTES):
            checksum = _crc32c(self.read(at, min(_PIECE_BYTES, self.length - at)), checksum)
        stored = _read(self.descriptor, self.start + self.length, _CHECKSUM)
        if _masked(checksum) != int.from_bytes(stored, "little"):
            raise DamagedRecordError("its checksum is wrong")


class RecordFile:
    """A file of `count` records. What it keeps in memory is 9 bytes a record.

    Content is checked against its checksum when a record is first read; a file that changes from then on is an error.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._starts = array("Q", [0])  # of the records that are known, and of the one behind them
        self._checked = bytearray()
        self._state: tuple[int, ...] | None = None

    def open(self) -> "OpenRecords":
        """The records, as a context manager.

        Raises:
            DataError: the file cannot be read, or has changed since it was first opened.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); restore the file") from None
        found = os.fstat(descriptor)
        state = (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)
        if self._state not in (None, state):
            os.close(descriptor)
            raise DataError(f"{self.path}: has changed since it was first read; start anew when nobody writes it")
        self._state = state
        if self.count * (_HEADER + _CHECKSUM) > found.st_size:
            os.close(descriptor)
            raise DataError(
                f"{self.path}: too short for the {self.count} records of dataset_info.json; restore the file"
            )
        self._checked = self._checked or bytearray(self.count)
        return OpenRecords(self, descriptor, found.st_size, self._starts, self._checked)


@dataclass(frozen=True)
class OpenRecords:
    """The records of a file that is open."""

    file: RecordFile
    descriptor: int
    size: int
    starts: "array[int]"
    checked: bytearray

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def record(self, number: int) -> Record:
        """The record of this number, from 0; raises DamagedRecordError if it, or a length before it, is damaged."""
        while len(self.starts) <= number:
            before = self._at(len(self.starts) - 1)
            self.starts.append(before.start + before.length + _CHECKSUM)
        record = self._at(number)
        if not self.checked[number]:
            record.check()
            self.checked[number] = 1
        return record

    def check_end(self) -> None:
        """Raise DataError if more follows the last record, as far as the lengths of the records are good."""
        if len(self.starts) < self.file.count:
            return
        last = self._at(self.file.count - 1) if self.file.count else None
        if self.size > (0 if last is None else last.start + last.length + _CHECKSUM):
            raise DataError(
                f"{self.file.path}: more follows the {self.file.count} records that dataset_info.json counts; "
                "restore both"
            )

    def _at(self, number: int) -> Record:
        header = _read(self.descriptor, self.starts[number], _HEADER)
        if _masked(_crc32c(header[:_LENGTH], 0)) != int.from_bytes(header[_LENGTH:], "little"):
            raise DamagedRecordError(f"the checksum of the length of record {number} is wrong")
        record = Record(self.descriptor, self.starts[number] + _HEADER, int.from_bytes(header[:_LENGTH], "little"))
        if record.start + record.length + _CHECKSUM > self.size:
            raise DamagedRecordError("the file is cut off")
        return record


class Window:
    """Small reads that follow each other in a record, of which the file sees large ones."""

    _BYTES = 4096

    def __init__(self, record: Record) -> None:
        self._record = record
        self._start, self._held = 0, b""

    @property
    def length(self) -> int:
        """Bytes in the record."""
        return self._record.length

    def read(self, at: int, size: int) -> bytes:
        """As `Record.read`."""
        first = at - self._start
        if first < 0 or first + size > len(self._held):
            if size >= self._BYTES:
                return self._record.read(at, size)
            self._held = self._record.read(at, max(size, min(self._BYTES, self._record.length - at)))
            self._start, first = at, 0
        return self._held[first : first + size]


def _read(descriptor: int, at: int, size: int) -> bytes:
    try:
        content = os.pread(descriptor, size, at)
    except OSError as error:
        raise DamagedRecordError(f"it cannot be read: {error.strerror}") from None
    if len(content) != size:
        raise DamagedRecordError("the file is cut off")
    return content


def _crc32c(content: bytes, before: int) -> int:
    try:
        import crc32c
    except ModuleNotFoundError:
        raise MissingPackageError("TFRecords need the package crc32c: pip install 'vlatrack[rlds]'") from None
    return crc32c.crc32c(content, before)


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF

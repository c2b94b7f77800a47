"""Reads the records of RynnVLA-002 and WorldVLA: token rows that its data preparation has finished.

A YAML names JSON lists, a list names pickles, and each of these holds one row. They are read once and written into one
memory-mapped file (`vlatrack.data.rows`), from which a training takes its rows.
"""

import array
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlatrack.data.formats.rynnvla.lists import ListedRows, read_entries, read_meta
from vlatrack.data.formats.rynnvla.unpickle import LARGEST, load_plain
from vlatrack.data.row_writer import Row, write_rows
from vlatrack.data.rows import Ids32, TokenRows
from vlatrack.errors import DataError

_READING = 1
"""Of this file: another number makes rows be converted again."""

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Record:
    """One entry of a list."""

    place: str  # the list and the entry's number, for messages
    file: Path | None  # the pickle; None: the entry holds the row itself
    entry: dict[str, Any]

    @property
    def source(self) -> str:
        """Where its row is stored, for messages."""
        return self.place if self.file is None else str(self.file)

    def read(self) -> Row:
        """Its row; DataError if it is not there, or no row of ids and labels."""
        content = self.entry if self.file is None else load_plain(_content(self.file), self.source)
        if not isinstance(content, dict):
            raise DataError(f"{self.source}: a {type(content).__name__}, no dict with token and label; not a record")
        ids, labels = (_ids(content, name, self.source) for name in ("token", "label"))
        if len(ids) != len(labels) or not len(ids):
            raise DataError(f"{self.source}: {len(ids)} ids and {len(labels)} labels; tokenise it again")
        if (listed := self.entry.get("len", len(ids))) != len(ids):
            raise DataError(f"{self.source}: {len(ids)} ids, but {self.place} says {listed!r:.20}; tokenise it again")
        return Row(ids, labels)


class Records:
    """The records that a YAML of the reference names under META; or those of one list.

    Args:
        path: the YAML, or a list: a JSON array of `{file, len, id}`, or a .jsonl file with one of them a line.
        root: the folder below which all pickles lie; None: for each list the folder above its own.

    Raises:
        DataError: a list is not there; reading raises it for anything that is not a record.
    """

    def __init__(self, path: Path | str, root: Path | str | None = None) -> None:
        self.name = str(path)
        self.lists = read_meta(Path(path), None if root is None else Path(root))

    def __iter__(self) -> Iterator[Record]:
        for listed in self.lists:
            yield from self._of_list(listed)

    def place(self, number: int) -> str:
        """Where row `number` of the converted rows comes from, for messages: its list is read up to there."""
        return next(itertools.islice(iter(self), number, None)).source

    def rows(self, folder: Path, progress: Progress | None = None) -> TokenRows:
        """The rows in a memory-mapped file of a folder; they are converted if they have not been, or have changed.

        The file's name comes from the content of the lists and from size, time of change and inode of every pickle.
        `TokenRows.about["lists"]` says which rows are of which list, and the list's `ratio` and `type`.

        Args:
            progress: told after each row.

        Raises:
            DataError: a record cannot be read, or has changed meanwhile, or the file cannot be written.
        """
        state, sizes = self._state()
        file = folder / f"{state[:32]}.arrow"
        if file.exists():
            with suppress(DataError):  # which is said of a damaged one: it is written anew
                return TokenRows(file)
        if not (count := sum(sizes)):
            raise DataError(f"{self.name}: no record in its lists; nothing could be trained")
        ends = list(itertools.accumulate(sizes))
        lists = [
            {"start": end - size, "stop": end, "ratio": listed.ratio, "type": listed.group}
            for listed, size, end in zip(self.lists, sizes, ends, strict=True)
        ]
        write_rows(file, self._read(count, progress), {"source": self.name, "lists": lists})
        if self._state() != (state, sizes):
            file.unlink(missing_ok=True)
            raise DataError(f"{self.name}: records have changed while they were read; start again when they are whole")
        return TokenRows(file)

    def _of_list(self, listed: ListedRows) -> Iterator[Record]:
        for number, entry in read_entries(listed.file):
            place = f"{listed.file}: entry {number}"
            if "token" in entry and "label" in entry:
                yield Record(place, None, entry)
            elif "conversations" in entry:
                raise DataError(f"{place} is a conversation, not a record; use kind: rynnvla_conversations")
            else:
                folder, name = listed.root.locate(entry.get("file"), place)
                yield Record(place, folder / name, entry)

    def _read(self, count: int, progress: Progress | None) -> Iterator[Row]:
        for done, record in enumerate(self, start=1):
            yield record.read()
            if progress is not None:
                progress(done, count)

    def _state(self) -> tuple[str, list[int]]:
        """SHA-256 (hex) over all that tells whether the rows have changed, and the number of rows of each list."""
        state, sizes = hashlib.sha256(str(_READING).encode()), []
        for listed in self.lists:
            state.update(repr((listed.ratio, listed.group)).encode())
            with listed.file.open("rb") as stream:
                state.update(hashlib.file_digest(stream, "sha256").digest())
            sizes.append(0)
            for record in self._of_list(listed):
                sizes[-1] += 1
                if record.file is not None:
                    status = _status(record.file)
                    state.update(repr((status.st_size, status.st_mtime_ns, status.st_ino)).encode())
        return state.hexdigest(), sizes


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore the record") from None


def _content(file: Path) -> bytes:
    """Of a pickle; not more than one may have, whatever it is."""
    try:
        with file.open("rb") as stream:
            if not os.path.isfile(stream.fileno()):  # noqa: PTH113  # of what has been opened, whatever its path is now
                raise DataError(f"{file}: no regular file; restore the record")
            return stream.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore the record") from None


def _ids(content: dict[Any, Any], name: str, place: str) -> Ids32:
    values = content.get(name)
    if isinstance(values, list | tuple):
        try:
            return np.frombuffer(array.array("i", values), np.int32)
        except (TypeError, OverflowError):  # something else than integers, or too large
            pass
    raise DataError(f"{place}: its {name} is no list of ids; tokenise it again")

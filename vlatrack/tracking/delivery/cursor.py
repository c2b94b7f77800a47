"""How far a backend has got: its cursor file, written only after the backend acknowledged, and its dead letters."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Rejection
from vlatrack.tracking.journal.records import JournalReader, record_ending_at
from vlatrack.tracking.privacy import redact, write_private

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cursor:
    """State of one backend's delivery: everything up to record `seq`, which ends at byte `offset`, is there."""

    offset: int = 0
    seq: int = -1
    start_offset: int = 0
    """Where the `start` record begins that the remote run was opened with."""
    dead_letters: int = 0
    url: str | None = None
    destination: str = ""
    """The name of the `Destination` that has the records."""
    error: str | None = None
    """Why the last attempt failed; None while all is well."""


class CursorFile:
    """`<kind>-<n>.json` and `<kind>-<n>.dead.jsonl` in the delivery folder."""

    def __init__(self, folder: Path, label: str) -> None:
        self._path = folder / f"{label}.json"
        self.dead_path = folder / f"{label}.dead.jsonl"

    def read(self) -> Cursor:
        """The stored cursor; the beginning if there is none or it is damaged (delivery is idempotent)."""
        try:
            return _checked(Cursor(**json.loads(self._path.read_bytes())))
        except FileNotFoundError:
            return Cursor()
        except (ValueError, TypeError) as error:
            _log.warning("%s: damaged (%s); delivering from the beginning", self._path.name, error)
            return Cursor()

    def read_for(self, journal: Path) -> Cursor:
        """The stored cursor if it fits the journal, else the beginning."""
        cursor = self.read()
        if _fits(cursor, journal):
            return cursor
        _log.warning("%s: does not fit the journal; delivering from the beginning", self._path.name)
        self.dead_path.unlink(missing_ok=True)
        return Cursor()

    def write(self, cursor: Cursor) -> None:
        write_private(self._path, json.dumps(dataclasses.asdict(cursor)))

    def add_dead_letters(self, rejections: Sequence[Rejection]) -> None:
        """Append what a backend refused for good, each with its reason."""
        if not rejections:
            return
        lines = "".join(
            json.dumps({"t_ms": time.time_ns() // 1_000_000, **dataclasses.asdict(rejection)}) + "\n"
            for rejection in rejections
        )
        fd = os.open(self.dead_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(redact(lines))


def _checked(cursor: Cursor) -> Cursor:
    numbers = (cursor.offset, cursor.seq + 1, cursor.start_offset, cursor.dead_letters)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number is none, or negative")
    return cursor


def _fits(cursor: Cursor, journal: Path) -> bool:
    """Whether record `seq` ends at `offset`: with another number, records to come would be taken for delivered."""
    if cursor.offset > journal.stat().st_size or cursor.start_offset > cursor.offset:
        return False
    try:
        last = record_ending_at(journal, cursor.offset)
        start = JournalReader(journal, offset=cursor.start_offset).read(1)
    except TrackerError:
        return False
    if cursor.offset and (last is None or last.seq != cursor.seq):
        return False
    return (cursor.offset > 0 or cursor.seq == -1) and all(record.kind == "start" for record in start)

"""How far a backend has got: its cursor file, written only after the backend acknowledged, and its dead letters."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Rejection
from vlatrack.tracking.journal.records import JournalReader, record_ending_at
from vlatrack.tracking.privacy import open_private, redact, write_private

UNTRIED = "on its way; `vlatrack sync --patience 600` waits longer"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """A place in the journal: behind record `seq`, which ends at byte `offset`."""

    offset: int = 0
    seq: int = -1


@dataclass(frozen=True)
class SetAside:
    """A record that begins at byte `offset` and is not delivered yet, while later ones are; `error` says why."""

    seq: int
    offset: int
    kind: str
    error: str | None = None


@dataclass(frozen=True)
class Cursor:
    """State of one backend's delivery: metrics and other records each have got to a mark of their own."""

    metrics: Mark = Mark()
    others: Mark = Mark()
    set_aside: tuple[SetAside, ...] = ()
    """What is left before the marks, ascending in seq."""
    end_is_due: bool = False
    """The finish record has been passed, and the backend is not told of it yet, or not since it got something more."""
    dead_letters: int = 0
    url: str | None = None
    destination: str = ""
    """The name of the `Destination` that has the records."""
    journal: str = ""
    """Which journal the records are of, whatever its path: the beginning of the SHA-256 of its first line."""
    error: str | None = None
    """Why the last attempt to reach the tracker, or to deliver metrics, failed; None while all is well."""

    @property
    def seq(self) -> int:
        """The last record before which nothing is left but what is set aside, or -1."""
        return min(self.metrics.seq, self.others.seq)

    @property
    def offset(self) -> int:
        """The byte at which the next record begins that has not been looked at for all kinds."""
        return min(self.metrics.offset, self.others.offset)

    def delivered_of(self, total: int) -> int:
        """How many of the first `total` records are delivered."""
        reached = min(total, self.seq + 1)
        return max(0, reached - sum(left.seq < reached for left in self.set_aside) - self.end_is_due)

    @property
    def is_all(self) -> bool:
        """Whether nothing is left up to `seq`."""
        return not self.set_aside and not self.end_is_due

    @property
    def reason(self) -> str | None:
        """Why something is not delivered, in one line; None while all is well."""
        if self.error is not None or not self.set_aside:
            return self.error
        first = next((left for left in self.set_aside if left.error is not None), self.set_aside[0])
        others = f" (and {len(self.set_aside) - 1} others)" if len(self.set_aside) > 1 else ""
        return f"{first.kind}: {first.error or UNTRIED}{others}"

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Cursor":
        """A cursor as its file has it; ValueError or TypeError if it is none."""
        if "offset" in fields:  # of vlatrack 0.1, which had one mark for all records
            mark = Mark(fields.pop("offset"), fields.pop("seq"))
            fields.pop("start_offset", None)
            return _checked(cls(metrics=mark, others=mark, **fields))
        metrics, others = (Mark(**fields.pop(name)) for name in ("metrics", "others"))
        set_aside = tuple(SetAside(**left) for left in fields.pop("set_aside"))
        return _checked(cls(metrics=metrics, others=others, set_aside=set_aside, **fields))


class CursorFile:
    """`<kind>-<n>.json` and `<kind>-<n>.dead.jsonl` in the delivery folder."""

    def __init__(self, folder: Path, label: str) -> None:
        self._path = folder / f"{label}.json"
        self.dead_path = folder / f"{label}.dead.jsonl"

    def read(self) -> Cursor:
        """The stored cursor; the beginning if there is none or it is damaged (delivery is idempotent)."""
        try:
            return Cursor.of(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return Cursor()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.warning("%s: damaged (%s); delivering from the beginning", self._path.name, error)
            return Cursor()

    def read_for(self, journal: Path) -> Cursor:
        """The stored cursor if it is of this journal and fits it, else the beginning."""
        cursor, identity = self.read(), _identity(journal)
        if cursor.journal in ("", identity) and _fits(cursor, journal):
            return dataclasses.replace(cursor, journal=identity)
        _log.warning("%s: does not fit the journal; delivering from the beginning", self._path.name)
        self.forget_dead_letters()
        return Cursor(journal=identity)

    def write(self, cursor: Cursor) -> None:
        write_private(self._path, json.dumps(dataclasses.asdict(cursor)))

    def add_dead_letters(self, rejections: Sequence[Rejection]) -> int:
        """Append what a backend refused for good, each with its reason, unless it stands there; returns how many stand
        there then."""
        new = [rejection for rejection in rejections if (rejection.seq, redact(rejection.what)) not in self._buried]
        if new:
            now = time.time_ns() // 1_000_000
            lines = "".join(json.dumps({"t_ms": now, **dataclasses.asdict(rejection)}) + "\n" for rejection in new)
            fd = open_private(self.dead_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(redact(lines))
            self._buried.update((rejection.seq, redact(rejection.what)) for rejection in new)
        return len(self._buried)

    def forget_dead_letters(self) -> None:
        """They are of another destination, or of another journal."""
        self.dead_path.unlink(missing_ok=True)
        self.__dict__.pop("_buried", None)

    @functools.cached_property
    def _buried(self) -> set[tuple[int, str]]:
        """What stands in the file, for a delivery from the beginning meets it again; a line that a crash cut counts
        as missing."""
        buried = set()
        lines = self.dead_path.read_text(encoding="utf-8").splitlines() if self.dead_path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                letter = json.loads(line)
                buried.add((letter["seq"], letter["what"]))
        return buried


def _checked(cursor: Cursor) -> Cursor:
    """ValueError if a field is not of its type, or negative."""
    marks: list[Mark | SetAside] = [cursor.metrics, cursor.others, *cursor.set_aside]
    numbers = [number for mark in marks for number in (mark.offset, mark.seq + 1)] + [cursor.dead_letters]
    texts = [cursor.url, cursor.destination, cursor.error, *(left.error for left in cursor.set_aside)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number is none, or negative")
    if type(cursor.end_is_due) is not bool:
        raise ValueError("end_is_due is not true or false")
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    return cursor


def _identity(journal: Path) -> str:
    with journal.open("rb") as file:
        return hashlib.sha256(file.readline()).hexdigest()[:16]


def _fits(cursor: Cursor, journal: Path) -> bool:
    """Whether the records are where the cursor says: with other numbers, some to come would be taken for delivered."""
    size = journal.stat().st_size
    try:
        return all(_ends_at(mark, journal, size) for mark in (cursor.metrics, cursor.others)) and all(
            _begins_at(left, journal, size) for left in cursor.set_aside
        )
    except TrackerError:
        return False


def _ends_at(mark: Mark, journal: Path, size: int) -> bool:
    if mark.offset == 0 or mark.seq == -1:
        return mark == Mark()
    last = record_ending_at(journal, mark.offset) if mark.offset <= size else None
    return last is not None and last.seq == mark.seq


def _begins_at(left: SetAside, journal: Path, size: int) -> bool:
    found = JournalReader(journal, offset=left.offset).read(1) if left.offset < size else []
    return bool(found) and (found[0].seq, found[0].kind) == (left.seq, left.kind)

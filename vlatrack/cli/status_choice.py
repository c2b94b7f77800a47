"""Which runs `vlatrack status` shows and in which order, and when there is something new to show."""

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from vlatrack.errors import TrackerError
from vlatrack.tracking.delivery.report import Unreadable, run_directories
from vlatrack.tracking.journal.progress import LOSS_NAMES
from vlatrack.tracking.run_state import RunState, state_of

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_KEYS = ("run", "name", "status", "step", "left", "speed", "logged", *LOSS_NAMES)
Entry = RunState | Unreadable


@dataclass(frozen=True)
class Choice:
    """Filters that all must fit, and an order."""

    experiment: str | None
    statuses: Sequence[str]
    """in small letters; none: every status"""
    since: float | None
    """Unix seconds"""
    name: str | None
    sort: str

    @classmethod
    def of(
        cls, experiment: str | None, statuses: Sequence[str], since: str | None, name: str | None, sort: str
    ) -> Self:
        """As the command line has it; TrackerError for a time or a key that is none."""
        if sort not in _KEYS:
            raise TrackerError(f"--sort {sort}: expected one of {', '.join(_KEYS)}")
        return cls(experiment, statuses, None if since is None else _moment(since), name, sort)

    @property
    def is_everything(self) -> bool:
        return not self.statuses and all(word is None for word in (self.experiment, self.since, self.name))

    def of_these(self, entries: Iterable[Entry]) -> list[Entry]:
        chosen = [entry for entry in entries if self._fits(entry)]
        return chosen if self.sort == "run" else sorted(chosen, key=self._place)

    def _fits(self, entry: Entry) -> bool:
        """One that cannot be read has no time and no name but its folder's."""
        readable = entry if isinstance(entry, RunState) else None
        word = "unreadable" if readable is None else readable.word.lower()
        logged = None if readable is None else readable.progress.last_ms
        names = [entry.run_dir.name, (readable.progress.name or "") if readable is not None else ""]
        return (
            (self.experiment is None or fnmatchcase(entry.run_dir.parent.name, self.experiment))
            and (not self.statuses or word in self.statuses)
            and (self.since is None or (logged is not None and logged / 1000 >= self.since))
            and (self.name is None or any(fnmatchcase(name, f"*{self.name}*") for name in names))
        )

    def _place(self, entry: Entry) -> tuple[float, str]:
        """The lowest loss and the least time first, but the furthest step, the fastest and the latest; what has no such
        number comes last."""
        if isinstance(entry, Unreadable):
            return math.inf, ""
        progress, text, number = entry.progress, "", None
        match self.sort:
            case "name":
                text = progress.name or ""
                number = 0.0
            case "status":
                text, number = entry.word, 0.0
            case "step":
                number = None if entry.step is None else -float(entry.step)
            case "left":
                number = entry.left_s
            case "speed":
                number = None if progress.steps_per_s is None else -progress.steps_per_s
            case "logged":
                number = None if progress.last_ms is None else -float(progress.last_ms)
            case metric:
                number = progress.losses.get(metric)
        return math.inf if number is None or math.isnan(number) else number, text


def _moment(text: str) -> float:
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text.strip().lower()):
        return time.time() - int(found[1]) * _SECONDS[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise TrackerError(
            f"--since {text}: expected an age such as 90m, 36h, 2d or 1w, or a date: 2026-01-31"
        ) from None


class Watched:
    """All runs below a folder, each read again only when its files have changed, or while it is running."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._known: dict[Path, tuple[object, Entry | None]] = {}
        self.signature: object = ()
        """Changes with what `look` returns."""

    def look(self) -> list[Entry]:
        """Every run as it is now; TrackerError as `run_directories`."""
        seen: dict[Path, tuple[object, Entry | None]] = {}
        entries = []
        for found in run_directories(self._runs):
            run_dir = found.run_dir if isinstance(found, Unreadable) else found
            files = tuple(_files_of(run_dir))
            known = self._known.get(run_dir)
            if known is None or known[0] != files or (isinstance(known[1], RunState) and known[1].is_running):
                known = files, found if isinstance(found, Unreadable) else state_of(found)
            seen[run_dir] = known
            entries.append(known[1])
        self._known = seen
        told = [entry for entry in entries if entry is not None]
        words = tuple(entry.word for entry in told if isinstance(entry, RunState))
        self.signature = (tuple((run_dir, files) for run_dir, (files, _) in seen.items()), words)
        return told


def _files_of(run_dir: Path) -> Iterator[tuple[str, int, int]]:
    """Size and time of what tells of a run: its journal, and how far delivery has come."""
    journal = run_dir / "journal.jsonl"
    for file in (journal, *sorted((run_dir / "delivery").glob("*.json"))):
        try:
            found = file.stat()
        except OSError:
            continue
        yield file.name, found.st_size, found.st_mtime_ns

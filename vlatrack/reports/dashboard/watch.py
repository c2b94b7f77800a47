"""Watches a runs folder: a row for each run, kept up to date, and the series of the runs that somebody looks at."""

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.reports.run_rows import RunReader, RunRow
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.journal.series import JournalSeries

POLL_S = 0.7
"""Between two looks at the journals."""
_FOLDERS_EVERY_S = 2.0
"""Between two looks for new runs."""
_STATE_EVERY_S = 5.0
"""Between two looks whether the process of a run that writes nothing still lives."""
_MOST_SERIES = 24
"""So many runs have their series in memory; one of a million records takes some megabytes."""
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


@dataclass
class _Watched:
    """A run and what was known when its files were last looked at."""

    run_dir: Path
    stamp: Stamp | None = None
    reader: RunReader | None = None
    row: RunRow | None = None
    version: int = 0
    read_at: float = 0.0


@dataclass
class _Series:
    """The series of one run; one request reads on at a time."""

    journal: JournalSeries
    lock: threading.Lock = field(default_factory=threading.Lock)


class RunsWatcher:
    """The rows of all runs below a folder, read by a thread of its own.

    Every change gets a version, higher than all before it.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.life = secrets.token_hex(4)
        """Names this watcher: the versions of another one, as before a restart, are not comparable."""
        self.version = 0
        self.is_complete = False
        """Whether every run has been read once."""
        self.problem: str | None = None
        """Why the folder cannot be read now."""
        self._watched: dict[str, _Watched] = {}
        self._gone: dict[str, int] = {}
        self._warned = set[str]()
        self._series: OrderedDict[str, _Series] = OrderedDict()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-runs", daemon=True)
        self._listeners: set[Callable[[], None]] = set()

    def start(self) -> None:
        self._thread.start()

    @property
    def is_ending(self) -> bool:
        return self._ending.is_set()

    def end(self) -> None:
        """Let the thread end, and tell those who wait for changes that there are none to come."""
        self._ending.set()
        self._tell()

    def stop(self) -> None:
        """`end`, and wait for the thread; the watcher cannot be started again."""
        self.end()
        self._thread.join()

    def rows(self, *, after: int = -1) -> tuple[list[RunRow], list[str], int]:
        """The rows that changed after a version, the ids of runs that are gone since, and the version now."""
        with self._lock:
            rows = [w.row for w in self._watched.values() if w.version > after and w.row is not None]
            gone = [run_id for run_id, version in self._gone.items() if version > after]
            return rows, gone, self.version

    def row(self, run_id: str) -> RunRow | None:
        """The row of one run; None if there is no such run."""
        with self._lock:
            watched = self._watched.get(run_id)
            return None if watched is None else watched.row

    def run_dir(self, run_id: str) -> Path | None:
        """The directory of a run that was found in the folder; ids are looked up here, never made into paths."""
        with self._lock:
            watched = self._watched.get(run_id)
            return None if watched is None else watched.run_dir

    @contextmanager
    def series(self, run_id: str, *, most_s: float = 1.0) -> Iterator[JournalSeries | None]:
        """The series of a run, read on for at most about ``most_s`` seconds, for as long as the block; None if there is
        no such run any more."""
        run_dir = self.run_dir(run_id)
        if run_dir is None:
            yield None
            return
        with self._lock:
            series = self._series.pop(run_id, None) or _Series(JournalSeries(run_dir / "journal.jsonl"))
            self._series[run_id] = series
            while len(self._series) > _MOST_SERIES:
                self._series.popitem(last=False)
        with series.lock:
            end = time.monotonic() + most_s
            try:
                while series.journal.read() and time.monotonic() < end:
                    pass
            except OSError as error:  # it is deleted, and the next look for runs finds that
                _log.warning("%s: cannot be read (%s)", series.journal.path, error.strerror)
                yield None
                return
            yield series.journal

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something changed."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._listeners.add(tell)
        try:
            yield changed
        finally:
            self._listeners.discard(tell)

    def _watch(self) -> None:
        next_folders = 0.0
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= next_folders:
                self._find_runs()
                next_folders = time.monotonic() + _FOLDERS_EVERY_S
            before = self.version
            for watched in list(self._watched.values()):
                if self._ending.is_set():
                    return
                self._look_at(watched)
            if not self.is_complete:
                self.is_complete = True
                self.version += 1
            if self.version != before:
                self._tell()
            self._ending.wait(POLL_S)

    def _find_runs(self) -> None:
        try:
            problems = list[str]()
            found = dict(_run_directories(self.runs, problems))
        except OSError as error:
            self.problem = f"{self.runs}: cannot be read ({error.strerror})"
            return
        self.problem = "; ".join(problems) or None
        for problem in [problem for problem in problems if problem not in self._warned]:
            _log.warning("%s", problem)
            self._warned.add(problem)
        newest_first = sorted(found.items(), key=lambda entry: entry[1].name, reverse=True)
        with self._lock:
            for run_id in [known for known in self._watched if known not in found]:
                del self._watched[run_id]
                self._series.pop(run_id, None)
                self.version += 1
                self._gone[run_id] = self.version
            for run_id, run_dir in newest_first:
                if run_id not in self._watched:
                    self._watched[run_id] = _Watched(run_dir)
                    self._gone.pop(run_id, None)

    def _look_at(self, watched: _Watched) -> None:
        """Read the row of a run again if its files have changed, or its process may be gone."""
        stamp = _stamp(watched.run_dir / "journal.jsonl")
        is_running = watched.row is not None and watched.row.status == "RUNNING"
        lacks = watched.row is not None and bool(watched.row.undelivered)
        is_due = (is_running or lacks) and time.monotonic() - watched.read_at > _STATE_EVERY_S
        if stamp == watched.stamp and not is_due:
            return
        row = _read_row(watched)
        watched.read_at = time.monotonic()
        with self._lock:
            watched.stamp = stamp
            if row != watched.row:
                self.version += 1
                watched.row, watched.version = row, self.version
        if not self.is_complete and self.version % 50 == 0:
            self._tell()

    def _tell(self) -> None:
        for tell in list(self._listeners):
            try:
                tell()
            except RuntimeError:  # its event loop has ended
                self._listeners.discard(tell)


def _read_row(watched: _Watched) -> RunRow:
    """The row of a run; whatever is wrong with its files must not keep the others from being shown."""
    try:
        watched.reader = watched.reader or RunReader(watched.run_dir)
        return watched.reader.row()
    except (TrackerError, OSError) as error:
        reason = str(error)
    except Exception as error:  # somebody has made these files, to whom no rule applies
        reason = f"its files are damaged ({one_line(error)})"
    watched.reader = None
    experiment, name = watched.run_dir.parent.name, watched.run_dir.name
    return RunRow(id=f"{experiment}/{name}", name=name, experiment=experiment, status="UNREADABLE", reason=reason)


def _run_directories(runs: Path, problems: list[str]) -> Iterator[tuple[str, Path]]:
    """Every `<runs>/<experiment>/<run-id>` with a journal, also where these folders are symbolic links.

    What is wrong with an experiment's folder is added to `problems`. Raises OSError if the runs folder cannot be read.
    """
    with os.scandir(runs) as experiments:
        for experiment in experiments:
            if experiment.name.startswith(".") or not experiment.is_dir():
                continue
            try:
                with os.scandir(experiment.path) as run_dirs:
                    for entry in run_dirs:
                        path = Path(entry.path)
                        if not entry.name.startswith(".") and (path / "journal.jsonl").is_file():
                            yield f"{experiment.name}/{entry.name}", path
            except OSError as error:
                problems.append(f"{experiment.path}: cannot be read ({error.strerror})")


def _stamp(journal: Path) -> Stamp | None:
    try:
        found: Any = journal.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

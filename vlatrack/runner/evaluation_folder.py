"""The folder of an evaluation in a simulator: what was evaluated, a row for each episode that has ended, and videos.

Several processes may evaluate into it. A row is on the disk before the next episode is told of; so a killed evaluation
goes on where it was.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vlatrack.errors import RunError
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.rows import HEADER, SHOWN_TABLE, TABLE, EpisodeRow, lines, shown_table
from vlatrack.runner.episode_shares import EpisodeShares, alone, unwritable, whole_rows
from vlatrack.tracking.lock import FileLock, LockHeldError
from vlatrack.tracking.privacy import private_directory, write_private

DESCRIPTION, VIDEOS = "evaluation.json", "videos"
IDENTITY = ("set", "versions", "acting", "policy_sha256", "forced")
"""What has to be the same for an evaluation to go on in its folder."""
_LOCK = ".lock"


class EvaluationFolder:
    """The results of one evaluation, which other processes may be adding to."""

    def __init__(
        self, path: Path, description: Mapping[str, Any], order: Sequence[EpisodeId], shares: EpisodeShares
    ) -> None:
        """Use `open`."""
        self.path, self._description, self._order, self._shares = path, dict(description), order, shares
        self._rows: dict[EpisodeId, EpisodeRow] = {}
        self.refresh()

    @classmethod
    def open(
        cls, path: Path, description: Mapping[str, Any], order: Sequence[EpisodeId], *, set_aside: bool = False
    ) -> Self:
        """Begin an evaluation, go on with one, or help with one that is going on.

        Args:
            description: what is evaluated, by the keys of `IDENTITY` and others.
            order: the episodes of the set.
            set_aside: if the folder holds another evaluation, it gets another name, and a new one begins.

        Raises:
            RunError: it cannot be written, or it holds another evaluation.
            DataError: its table is damaged.
        """
        try:
            private_directory(path)
            with alone(path / _LOCK):
                before = _read_description(path)
                is_other = before is not None and any(before[key] != description[key] for key in IDENTITY)
                if set_aside and is_other:
                    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
                    path.rename(path.with_name(f"{path.name}.{number}"))
                    private_directory(path)
                    before = None
                if before is None:
                    write_private(path / DESCRIPTION, _text(description))
                else:
                    _check_same(path, before, description)
                shares = EpisodeShares.join(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error
        try:
            return cls(path, {**description, **(before or {})}, order, shares)
        except BaseException:
            shares.leave()
            raise

    @property
    def table(self) -> Path:
        return self.path / TABLE

    @property
    def description(self) -> Path:
        return self.path / DESCRIPTION

    @property
    def videos(self) -> Path:
        return self.path / VIDEOS

    @property
    def content(self) -> Mapping[str, Any]:
        """What `evaluation.json` holds."""
        return self._description

    @property
    def results(self) -> list[str]:
        """The files and folders that others see of a complete evaluation."""
        return [DESCRIPTION, TABLE, SHOWN_TABLE, VIDEOS]

    @property
    def rows(self) -> list[EpisodeRow]:
        """Of the episodes that have ended as far as this process knows, in the order of the set."""
        return [self._rows[episode] for episode in self._order if episode in self._rows]

    @property
    def is_complete(self) -> bool:
        """Whether all episodes have ended."""
        return all(episode in self._rows for episode in self._order)

    @property
    def is_finished(self) -> bool:
        """Whether the summary is there, as of the last look by `open` or `finishing`."""
        return "summary" in self._description

    def refresh(self) -> None:
        """Look at the rows of all processes. The table is read last: once it is complete, their files are removed."""
        rows = self._shares.rows()
        table = whole_rows(self.table.read_bytes(), self.table) if self.table.exists() else []
        for row in (*rows, *table):
            self._rows.setdefault(row.id, row)

    def claim(self) -> int | None:
        """The number in the set of an episode that is now for this process to run; None: none is left for it."""
        while True:
            self.refresh()
            left = [number for number, episode in enumerate(self._order) if episode not in self._rows]
            number = self._shares.claim(left)
            self.refresh()
            if number is None or self._order[number] not in self._rows:
                return number

    def append(self, row: EpisodeRow) -> None:
        """Add the row of an episode that has ended.

        Raises:
            RunError: the folder cannot be written.
        """
        self._shares.append(row)
        self._rows[row.id] = row
        self.refresh()
        with self._unless_held() as free:  # who has it writes the table, and the next row, or the end, brings this one
            if free:
                self._write_table()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """When all episodes have ended: one process after another. What served their division is removed at the end."""
        with alone(self.path / _LOCK):
            self.refresh()
            self._description |= _read_description(self.path) or {}
            yield
            self._shares.tidy()
            for unfinished in self.path.glob(".*.new"):  # of processes that were killed while they had the lock
                unfinished.unlink(missing_ok=True)

    def finish(self, rows: Sequence[EpisodeRow], summary: Mapping[str, Any]) -> None:
        """Write the table, and the summary, while `finishing`.

        Args:
            rows: all of them, which may have lost their videos.
        """
        self._rows = {row.id: row for row in rows}
        self._write_table()
        self._description["summary"] = dict(summary)
        try:
            write_private(self.path / SHOWN_TABLE, json.dumps(shown_table(self.rows), indent=1) + "\n")
            write_private(self.description, _text(self._description))
        except OSError as error:
            raise unwritable(self.description, error) from error

    def close(self) -> None:
        """Let other processes have the episodes that this one has claimed and not ended.

        Where no episode has ended, as after a mistake that the simulator finds, no results are left behind.
        """
        self._shares.leave()
        with self._unless_held() as free:
            if not free:
                return
            self.refresh()
            if not self._rows and not self.is_complete and self._shares.is_deserted:
                self._shares.tidy()
                self.description.unlink(missing_ok=True)
            self._shares.remove_folders()

    @contextmanager
    def _unless_held(self) -> Iterator[bool]:
        """Whether no other process has locked the folder; then this one has."""
        try:
            lock = FileLock.acquire(self.path / _LOCK)
        except LockHeldError:
            yield False
            return
        except OSError as error:
            raise unwritable(self.path / _LOCK, error) from error
        try:
            yield True
        finally:
            lock.release()

    def _write_table(self) -> None:
        try:
            write_private(self.table, lines([HEADER, *self.rows]))
        except OSError as error:
            raise unwritable(self.table, error) from error


def _text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=1) + "\n"


def _read_description(path: Path) -> dict[str, Any] | None:
    file = path / DESCRIPTION
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunError(f"{file}: cannot be read ({error}); choose another --output, or remove the folder") from error
    if not isinstance(content, dict) or not content.keys() >= set(IDENTITY):
        raise RunError(f"{file}: not of an evaluation in a simulator; choose another --output")
    return content


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # The digest of a policy says more than the server that it is behind.
    for key in (*IDENTITY, *(["server"] if now["policy_sha256"] is None else [])):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key, old, new = next(
                (f"{key}.{name}", old.get(name), new.get(name))
                for name in dict.fromkeys([*new, *old])
                if old.get(name) != new.get(name)
            )
        raise RunError(
            f"{path}: holds another evaluation ({key}: {json.dumps(old)} -> {json.dumps(new)}); give this one another "
            "name (name=…) or --output, or remove the folder"
        )

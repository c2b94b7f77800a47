"""The folder of an evaluation in a simulator: what was evaluated, a row for each episode that has ended, and videos.

A row is on the disk before the next episode is told of; so a killed evaluation goes on where it was.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from vlatrack.errors import RunError
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.rows import HEADER, SHOWN_TABLE, TABLE, EpisodeRow, lines, parse_rows, shown_table
from vlatrack.tracking.lock import FileLock, LockHeldError
from vlatrack.tracking.privacy import open_private, private_directory, write_private

DESCRIPTION, VIDEOS = "evaluation.json", "videos"
IDENTITY = ("set", "versions", "acting", "policy_sha256", "forced")
"""What has to be the same for an evaluation to go on in its folder."""


class EvaluationFolder:
    """The results of one evaluation; locked against a second process."""

    def __init__(self, path: Path, lock: FileLock, description: Mapping[str, Any], rows: list[EpisodeRow]) -> None:
        """Use `open`."""
        self.path, self._lock, self._description = path, lock, dict(description)
        self.rows = rows
        """Of the episodes that have ended, in the order in which they did."""

    @classmethod
    def open(cls, path: Path, description: Mapping[str, Any], *, set_aside: bool = False) -> Self:
        """Begin an evaluation, or go on with one.

        Args:
            description: what is evaluated, by the keys of `IDENTITY` and others.
            set_aside: if the folder holds another evaluation, it gets another name, and a new one begins.

        Raises:
            RunError: it cannot be written, another process writes it, or it holds another evaluation.
            DataError: its table is damaged.
        """
        try:
            private_directory(path)
            lock = FileLock.acquire(path / ".lock")
        except LockHeldError as error:
            raise RunError(f"{path}: {error.holder} evaluates there; wait for it, or choose another --output") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error
        try:
            before = _read_description(path)
            if before is not None and set_aside and any(before[key] != description[key] for key in IDENTITY):
                number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
                path.rename(path.with_name(f"{path.name}.{number}"))
                lock.release()
                return cls.open(path, description)
            if before is not None:
                _check_same(path, before, description)
            folder = cls(path, lock, {**description, **(before or {})}, _whole_rows(path / TABLE))
            if before is None:
                folder._write_description()
        except BaseException:
            lock.release()
            raise
        return folder

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

    def append(self, row: EpisodeRow) -> None:
        """Add the row of an episode that has ended."""
        fd = open_private(self.table, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(fd, "wb") as file:
            new = os.fstat(fd).st_size == 0
            file.write(lines([HEADER, row] if new else [row]).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self._lock.beat()

    def finish(self, order: Sequence[EpisodeId], summary: Mapping[str, Any]) -> None:
        """Write the table in the order of the set, with the videos that are there, and the summary."""
        of_episode = {row.id: row for row in self.rows}
        self.rows = [self._with_video(of_episode[episode]) for episode in order]
        write_private(self.table, lines([HEADER, *self.rows]))
        write_private(self.path / SHOWN_TABLE, json.dumps(shown_table(self.rows), indent=1) + "\n")
        self._description["summary"] = dict(summary)
        self._write_description()

    def close(self) -> None:
        """Let another process go on."""
        self._lock.release()

    def _with_video(self, row: EpisodeRow) -> EpisodeRow:
        if row.video and not (self.path / row.video).is_file():
            return replace(row, video="")
        return row

    def _write_description(self) -> None:
        write_private(self.description, json.dumps(self._description, indent=1) + "\n")


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
    for key in IDENTITY:
        old, new = before[key], now[key]
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


def _whole_rows(table: Path) -> list[EpisodeRow]:
    """The rows of a table, from which a last line that was cut off is removed."""
    if not table.exists():
        return []
    content = table.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(table, len(whole))
    return parse_rows(whole.decode(), str(table)) if whole else []

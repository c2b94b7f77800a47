"""How several processes divide the episodes of one evaluation, on one machine or on several that share its folder.

Each has a file of rows of its own, which is locked as long as it lives. A claim to an episode is a file that is created
exclusively, with the name of its holder in it. What a process has claimed that is gone, another one claims again under
the next number, which again only one can create: nothing is ever overwritten, so nobody has to be trusted to lock.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from vlatrack.errors import DISK_IS_FULL, RunError
from vlatrack.evaluation.rows import HEADER, EpisodeRow, lines, parse_rows
from vlatrack.tracking.lock import ALIVE_S, HEARTBEAT_INTERVAL_S, FileLock, lock_holder
from vlatrack.tracking.privacy import open_private, private_directory

_WITHOUT_END = float("inf")


class HeldLock:
    """A lock whose heartbeat goes on while this process is busy."""

    def __init__(self, lock: FileLock) -> None:
        self._lock, self._ended = lock, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        self._lock.release()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL_S):
            self._lock.beat()


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process has the file, and have it."""
    lock = HeldLock(FileLock.acquire(file, timeout_s=_WITHOUT_END))
    try:
        yield
    finally:
        lock.release()


class EpisodeShares:
    """The episodes that this process runs, and what all of them have."""

    def __init__(self, parts: Path, claims: Path) -> None:
        """Use `join`."""
        self._parts, self._claims = parts, claims
        self._name = secrets.token_hex(8)
        self._lock = HeldLock(FileLock.acquire(self._file_of(self._name)))
        self._read: dict[Path, tuple[int, list[EpisodeRow]]] = {}  # size of each file, and its rows

    @classmethod
    def join(cls, folder: Path) -> Self:
        """Take part. Raises OSError if the folder cannot be written."""
        return cls(private_directory(folder / "parts"), private_directory(folder / "claims"))

    def claim(self, numbers: Sequence[int]) -> int | None:
        """One of these episodes, which is now for this process to run; None: others that live have them all.

        Whoever asks looks at `rows` before and after: an episode may have ended, and its claim have been removed, since
        the numbers were collected.
        """
        newest = self._newest_claims()
        for number in numbers:
            if number not in newest and self._create(number, 0):
                return number
        gone: dict[str, bool] = {}
        for number in numbers:
            if number in newest:
                claim = self._claims / f"{number}.{newest[number]}"
                if self._is_left(claim, gone) and self._create(number, newest[number] + 1):
                    return number
        return None

    def append(self, row: EpisodeRow) -> None:
        """Keep the row of an episode that has ended; it is on the disk afterwards.

        Raises:
            RunError: it cannot be written.
        """
        file = self._file_of(self._name)
        try:
            with os.fdopen(open_private(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb") as stream:
                new = os.fstat(stream.fileno()).st_size == 0
                stream.write(lines([HEADER, row] if new else [row]).encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(file, error) from error

    def rows(self) -> list[EpisodeRow]:
        """Of all episodes that have ended in any of the processes.

        Raises:
            DataError: a file is damaged.
        """
        return [row for file in sorted(self._parts.glob("*.csv")) for row in self._rows_of(file)]

    def tidy(self) -> None:
        """Remove all that served the division; only when every row is in the table, which comes first for readers."""
        for claim in self._claims.glob("*"):
            claim.unlink(missing_ok=True)
        for file in self._parts.glob("*.csv"):
            if file != self._file_of(self._name) and lock_holder(file) is None:
                _remove(file)

    def leave(self) -> None:
        """Let others have what is not done; a file of rows that no one needs is removed."""
        file = self._file_of(self._name)
        self._lock.release()
        if not self._rows_of(file) or next(self._claims.glob("*"), None) is None:
            _remove(file)

    @property
    def is_deserted(self) -> bool:
        """After `leave`: whether no other process takes part."""
        return all(lock_holder(file) is None for file in self._parts.glob("*.csv"))

    def remove_folders(self) -> None:
        """After `leave`, if no other process is there; nobody may `join` meanwhile."""
        for folder in (self._parts, self._claims):
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()

    def _file_of(self, name: str) -> Path:
        return self._parts / f"{name}.csv"

    def _rows_of(self, file: Path) -> list[EpisodeRow]:
        """The whole rows of a file: the last one of a process that was killed may be cut off."""
        try:
            with file.open("rb") as stream:  # opening it, not stat, makes a network file system look anew
                size = os.fstat(stream.fileno()).st_size
                if file in self._read and self._read[file][0] == size:
                    return self._read[file][1]
                content = stream.read()
        except FileNotFoundError:
            return []
        self._read[file] = len(content), whole_rows(content, file)
        return self._read[file][1]

    def _newest_claims(self) -> dict[int, int]:
        newest: dict[int, int] = {}
        for claim in self._claims.glob("*"):
            number, _, attempt = claim.name.partition(".")
            newest[int(number)] = max(newest.get(int(number), 0), int(attempt))
        return newest

    def _create(self, number: int, attempt: int) -> bool:
        """Whether the claim is this process's, and nobody was faster."""
        claim = self._claims / f"{number}.{attempt}"
        try:
            with os.fdopen(open_private(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as stream:
                stream.write(self._name)
        except (FileExistsError, FileNotFoundError):  # or all is done, and the folder of claims is gone
            return False
        except OSError as error:
            raise unwritable(claim, error) from error
        return True

    def _is_left(self, claim: Path, gone: dict[str, bool]) -> bool:
        """Whether the holder of a claim is gone and has left no row; of those in ``gone`` that is known."""
        try:
            holder, since = claim.read_text(encoding="utf-8"), claim.stat().st_mtime
        except FileNotFoundError:
            return False  # all is done, and tidied
        if not holder:  # killed before it could write its name, or about to do so
            return time.time() - since > ALIVE_S
        if holder not in gone:
            gone[holder] = lock_holder(self._file_of(holder)) is None
        return gone[holder]


def whole_rows(content: bytes, file: Path) -> list[EpisodeRow]:
    """The rows of a table, but for a last line that was cut off."""
    whole = content[: content.rfind(b"\n") + 1]
    return parse_rows(whole.decode(errors="replace"), str(file)) if whole else []


def unwritable(file: Path, error: OSError) -> RunError:
    """What a user is told when the folder refuses."""
    remedy = "free some disk space" if error.errno in DISK_IS_FULL else "make it writable"
    return RunError(
        f"{file}: cannot be written ({error.strerror}); {remedy} and repeat the command: the rows before it are kept"
    )


def _remove(file: Path) -> None:
    file.with_suffix(".lease").unlink(missing_ok=True)
    file.unlink(missing_ok=True)

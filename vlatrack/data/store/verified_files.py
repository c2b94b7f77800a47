"""Arrow files that are either whole or not there, and that are read memory-mapped.

A file is written aside, flushed and renamed. Behind the Arrow content stands its SHA-256, which is compared before
anything is read from it: a bit that has changed would be another token. Which files have been compared is remembered
(see `vlatrack.data.digests`), so that a file is not read whole again while nobody touches it.
"""

import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vlatrack.data.digests import DigestMemory
from vlatrack.errors import DataError

_DIGEST_BYTES = hashlib.sha256().digest_size
UNFINISHED = ".partial"
"""The end of the name of a file that is being written."""
_UNTIL_LOCKED_S = 1.0
"""A new file is locked a moment after it appears."""
ABANDONED_AFTER_S = 24 * 3600  # a file that another host writes grows


def write_verified(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """Write an Arrow file that appears when it is whole; the SHA-256 (hex) of its content.

    What is there under this name is replaced, while those who read it keep what they have. Two writers do no harm.

    Raises:
        DataError: it cannot be written; nothing is left of it then. What ``batches`` raises comes through.
    """
    with telling_write_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(file.parent)
    # A name of its own: two runs that start together must not write into one another's file. The pid alone would
    # not do, since runs in containers may share both it and the host's name.
    unfinished = file.with_suffix(f".{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}{UNFINISHED}")
    with telling_write_errors(file.parent):
        claim = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        sink = pa.OSFile(str(unfinished), "wb")
    try:
        with telling_write_errors(file.parent):
            with suppress(OSError):  # where there are no locks, the age of the file speaks for this process
                _lock(claim)
            writer = pa.ipc.new_file(sink, schema)
        for batch in batches:
            with telling_write_errors(file.parent):
                writer.write_batch(batch)
        with telling_write_errors(file.parent):
            writer.close()
            sink.close()
            with unfinished.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256")
            os.write(claim, digest.digest())
            os.fsync(claim)
            unfinished.replace(file)
    finally:
        sink.close()
        os.close(claim)
        unfinished.unlink(missing_ok=True)
    return digest.hexdigest()


@dataclass(frozen=True)
class Verified:
    """A file of `write_verified`, memory-mapped, and the SHA-256 (hex) of its content."""

    reader: pa.RecordBatchFileReader
    digest: str


def open_verified(file: Path, schema: pa.Schema, memory: DigestMemory) -> Verified | None:
    """The file of this name; None if there is none, or a damaged one, or one with other columns.

    Raises:
        DataError: it is there, and may not be read.
    """
    try:
        with pa.memory_map(str(file)) as mapped:
            whole = mapped.read_buffer()  # which keeps the mapping, not the file, open
        content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:].to_pybytes()
        if memory.digest_of(file, lambda: hashlib.sha256(content).hexdigest()) != digest.hex():
            return None
        stored = pa.ipc.open_file(content)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise DataError(f"{file}: may not be read; make it readable, or remove it") from None
    except (pa.ArrowException, OSError, ValueError):  # pyarrow raises any of them for a file that is cut off
        return None
    return Verified(stored, digest.hex()) if stored.schema.equals(schema) else None


@contextmanager
def exclusively(lock: Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Inside, no other process is inside; true. None where the file system has no locks: then others may be.

    Args:
        wait: for the process that is inside; else false tells that there is one.
    """
    with telling_write_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone: bool | None = True
        except BlockingIOError:
            is_alone = False
        except OSError:
            is_alone = None
        yield is_alone
        if is_alone:  # another process may have another file of this name now, and finds what has been written
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left unfinished."""
    for file in folder.glob(f"*{UNFINISHED}"):
        # Another run has just finished or removed it, or it is another user's to remove.
        with suppress(FileNotFoundError, PermissionError):
            if _is_abandoned(file):
                file.unlink()


def _is_abandoned(file: Path) -> bool:
    """Whether nobody writes a file any more: its writer would hold its lock, or the file would grow.

    Only the age judges a file of another host, and one whose file system has no locks. A pid would not tell, since
    containers share a host's name.
    """
    age_s = time.time() - file.stat().st_mtime
    is_locked = _has_writer(file)
    if is_locked:
        return False
    is_of_this_host = file.name.partition(".")[2].startswith(f"{socket.gethostname()}.")
    return age_s > (_UNTIL_LOCKED_S if is_of_this_host and is_locked is not None else ABANDONED_AFTER_S)


def _has_writer(file: Path) -> bool | None:
    """Whether another process has locked a file; None if its file system does not tell."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        _lock(descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed, without waiting for another process that has."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def telling_write_errors(place: Path, what: str = "prepared data", remedy: str = "make it writable") -> Iterator[None]:
    """Tell in one line why something cannot be written: a full disk, a quota, permissions."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise DataError(f"{place}: {what} cannot be written ({reason}); free space or {remedy}") from None

"""Locks that also hold where flock does not: on file systems without it, and between hosts that do not share theirs.

Whoever holds a lock leaves a lease beside the locked file: who it is, and a heartbeat (the time of the lease's last
change). The lease alone judges where flock is missing, or where the holder is on another host or in another PID
namespace, whose locks may not show here. A lock without a lease, of an earlier vlatrack, counts as flock says.

A lease also says which file was locked: beside a copy of it, it tells of the original, and a folder that is moved keeps
its lock.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.privacy import open_private, write_private

HEARTBEAT_INTERVAL_S = 5.0
ALIVE_S = 60.0
"""A holder on another host is taken for alive for so long after its last heartbeat."""
POLL_S = 0.01
_SETTLING_POLL_S = 0.5

_FLOCK_IS_MISSING = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_log = logging.getLogger(__name__)


class LockHeldError(TrackerError):
    """Another process holds the lock."""

    def __init__(self, path: Path, holder: "Holder") -> None:
        super().__init__(f"{path}: {holder} has locked it; wait for it or stop it")
        self.holder = holder


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock; `started` is its start in clock ticks since the boot, by which a recycled pid is
    told from it. Without a lease, all that is known is that there is one."""

    host: str = ""
    pid: int = 0
    started: int = -1
    boot_id: str = ""
    pid_namespace: str = ""
    inode: int = dataclasses.field(default=0, compare=False)
    """The file that it locked; 0 in a lease of an earlier vlatrack."""
    path: str = dataclasses.field(default="", compare=False)
    """Where that file was then."""

    def __str__(self) -> str:
        return f"another process ({self.pid} on {self.host})" if self.host else "another process"

    @property
    def is_here(self) -> bool:
        """Whether its pid means that process here: same host, same boot, same PID namespace."""
        return (self.host, self.boot_id, self.pid_namespace) == _this_place()

    @property
    def is_alive(self) -> bool:
        """Whether the process, which is here, has not ended; another one with its pid does not count."""
        return self.is_here and _start_of(self.pid) == self.started

    def has_locked(self, path: Path) -> bool:
        """Whether it is this file that it locked, and not one of which this is a copy."""
        return self.inode in (0, path.stat().st_ino)


class FileLock:
    """An exclusive lock on a file, held by this process until `release`; a forked child does not have it."""

    def __init__(self, path: Path, fd: int) -> None:
        """Use `FileLock.acquire`."""
        self._path = path
        self._fd = fd
        self._next_beat = 0.0
        self._warned = False

    @classmethod
    def acquire(cls, path: Path, *, timeout_s: float = 0.0) -> "FileLock":
        """Lock the file, which is created (mode 0600) if it is missing.

        Raises LockHeldError if somebody else has it for `timeout_s` seconds on, TrackerError if it is no regular file,
        OSError if the disk refuses.
        """
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            give_up = time.monotonic() + timeout_s
            while (holder := _try_lock(fd, path)) is not None:
                if time.monotonic() >= give_up:
                    raise LockHeldError(path, holder)
                time.sleep(POLL_S)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def write(self, text: str) -> None:
        """Replace what the locked file holds."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def beat(self) -> None:
        """Say that the holder is alive, if the last time was some seconds ago; called often by a background thread."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_INTERVAL_S
        try:
            try:
                os.utime(_lease_of(self._path), follow_symlinks=False)
            except FileNotFoundError:  # somebody has removed it, or has moved the folder
                _write_lease(self.place)
        except OSError as error:
            if not self._warned:
                _log.warning("%s: cannot be renewed (%s); other hosts may think that this process is gone", self, error)
            self._warned = True

    def release(self) -> None:
        """Unlock the file; another process that thought this one was gone keeps its own lease."""
        if lease_holder(self.place) == _this_process():
            _lease_of(self.place).unlink(missing_ok=True)
        self.forget()

    def __str__(self) -> str:
        return str(_lease_of(self._path))

    @property
    def place(self) -> Path:
        """Where the file is now: the folder that it is in may have been moved, on the same disk."""
        with contextlib.suppress(OSError):
            now = Path(f"/proc/self/fd/{self._fd}").readlink()
            if now.exists():  # the system shows a deleted file as "name (deleted)"
                self._path = now
        return self._path

    def forget(self) -> None:
        """Close the file without releasing the lock, which the parent of this forked process has."""
        fd, self._fd = self._fd, -1  # a signal handler may do the same meanwhile
        if fd >= 0:
            os.close(fd)


def lock_holder(path: Path) -> Holder | None:
    """Who holds the lock of a file; None if nobody does, or there is no such file. TrackerError if it is no regular
    file."""
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        locked = _flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
    if locked is False:
        return lease_holder(path) or Holder()
    return _holder_by_lease(path, flock_works=locked is not None)


def settled_holder(path: Path) -> Holder | None:
    """`lock_holder`, but of a holder in another place it waits for the next heartbeat, or until it counts as gone: a
    container that was killed, and is started again at once, finds the lease of its predecessor."""
    seen, give_up = _last_beat(path), time.monotonic() + ALIVE_S + HEARTBEAT_INTERVAL_S
    told = False
    while (holder := lock_holder(path)) is not None and holder.host and not holder.is_here:
        if _last_beat(path) != seen or time.monotonic() >= give_up:
            return lock_holder(path)
        if not told:
            _log.warning("%s: written by %s; waiting up to %.0f s for its next sign of life", path, holder, ALIVE_S)
        told = True
        time.sleep(_SETTLING_POLL_S)
    return holder


def lease_holder(path: Path) -> Holder | None:
    """Who left a lease beside this file, alive or not; None if there is none. TrackerError if it is no regular file."""
    try:
        with os.fdopen(open_private(_lease_of(path), os.O_RDONLY), "rb") as file:
            return Holder(**json.load(file))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        _log.warning("%s: damaged (%s); it is ignored", _lease_of(path), error)
        return None


def copied_from(path: Path) -> Holder | None:
    """Who locked the file that this one is a copy of, unless it is clear that only the copy is left: that process is
    gone, and its file as well. Copied on another host, or in the midst of a run, that cannot be known."""
    holder = lease_holder(path)
    if holder is None or not path.exists() or holder.has_locked(path):
        return None
    if holder.is_here and not holder.is_alive:
        original = Path(str(holder.path))
        try:
            is_there = original != path.absolute() and original.stat().st_ino == holder.inode
        except OSError:
            is_there = False
        return holder if is_there else None
    return holder


def _try_lock(fd: int, path: Path) -> Holder | None:
    """Lock, or say who has it."""
    locked = _flock(fd, fcntl.LOCK_EX)
    if locked is False:
        return lease_holder(path) or Holder()
    holder = _holder_by_lease(path, flock_works=locked is not None)
    if holder is not None and locked:
        fcntl.flock(fd, fcntl.LOCK_UN)
    if holder is None and locked:
        _write_lease(path)
    if holder is None and not locked:
        _lease_of(path).unlink(missing_ok=True)  # of a holder that is gone
        if not _create_lease(path):
            return lease_holder(path) or Holder()
    return holder


def _write_lease(path: Path) -> None:
    write_private(_lease_of(path), _lease_text(path))


def _create_lease(path: Path) -> bool:
    """Where there is no flock, whoever creates the lease has the lock; False if another process just did."""
    try:
        fd = open_private(_lease_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    with os.fdopen(fd, "w") as file:
        file.write(_lease_text(path))
    return True


def _lease_text(path: Path) -> str:
    locked = dataclasses.replace(_this_process(), inode=path.stat().st_ino, path=str(path.absolute()))
    return json.dumps(dataclasses.asdict(locked))


def _holder_by_lease(path: Path, *, flock_works: bool) -> Holder | None:
    """Who holds a file that is not locked as far as this host can tell."""
    holder = lease_holder(path)
    if holder is None:
        return None
    if holder.is_here:
        is_original = holder.has_locked(path)
        return holder if holder.is_alive and not (is_original and flock_works) else None
    last_beat = _last_beat(path)
    return holder if last_beat is not None and time.time() - last_beat < ALIVE_S else None


def _last_beat(path: Path) -> float | None:
    try:
        return _lease_of(path).lstat().st_mtime
    except FileNotFoundError:
        return None


def _flock(fd: int, kind: int) -> bool | None:
    """Whether the lock could be had; None if the file system has no locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _FLOCK_IS_MISSING:
            return None
        raise
    return True


def _lease_of(path: Path) -> Path:
    return path.with_suffix(".lease")


def _this_process() -> Holder:
    holder = process_here(os.getpid())
    assert holder is not None, "this process lives"
    return holder


def process_here(pid: int) -> Holder | None:
    """The process that has this pid here and now; None if there is none."""
    started = _start_of(pid)
    host, boot_id, pid_namespace = _this_place()
    return None if started is None else Holder(host, pid, started, boot_id, pid_namespace)


def _this_place() -> tuple[str, str, str]:
    """Host, boot and PID namespace; empty where the system does not tell."""
    boot_id = namespace = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname(), boot_id, namespace


def _start_of(pid: int) -> int | None:
    """When a process of this PID namespace started, in clock ticks since the boot; None if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(rest[18])

"""SHA-256 of files, computed once and remembered while a file's size, times and inode stand."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from vlatrack.data.progress import wanted_progress
from vlatrack.errors import DataError

_UNTIL_SETTLED_NS = 2_000_000_000
"""A file may change again within a tick of its file system's clock; one that is as new as that is not remembered."""
_hashed: ContextVar[set[str] | None] = ContextVar("hashed", default=None)
"""The files that have been hashed where all are to be; None: where what is remembered is believed."""

_Stamp = tuple[int, int, int, int]
"""Size in bytes, times of the last change of content and of inode in ns, number of the inode."""


def user_cache() -> Path:
    """The folder for what belongs to no run: ``$XDG_CACHE_HOME/vlatrack``, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "vlatrack"


@contextmanager
def hashing_all_files() -> Iterator[None]:
    """Inside, no file is believed to be what it was: each is read and hashed once, whatever is remembered of it."""
    token = _hashed.set(set())
    try:
        yield
    finally:
        _hashed.reset(token)


class DigestMemory:
    """Digests of files in a JSON file, each with what the file was like then.

    It is a convenience: one that cannot be read or written costs time alone.
    """

    def __init__(self, file: Path | None) -> None:
        """
        Args:
            file: its name; None: nothing is kept.
        """
        self._file = file
        self._known = {} if file is None else _read(file)
        self._found: dict[str, tuple[_Stamp, str]] = {}

    def digest_of(self, file: Path, compute: Callable[[], str]) -> str:
        """The digest of a file: the remembered one while nobody touches the file, else what ``compute`` gives.

        Raises:
            OSError: there is no such file.
        """
        stamp, name = _stamp_of(file), str(file)
        known, hashed = self._known.get(name), _hashed.get()
        if known is not None and known[0] == stamp and (hashed is None or name in hashed):
            return known[1]
        digest = compute()
        if hashed is not None:
            hashed.add(name)
        if time.time_ns() - max(stamp[1], stamp[2]) > _UNTIL_SETTLED_NS and _stamp_of(file) == stamp:
            self._known[name] = self._found[name] = (stamp, digest)
        return digest

    def save(self) -> None:
        """Keep what was found for the next process, beside what other processes have found meanwhile."""
        if self._file is None or not self._found:
            return
        content = {name: [*stamp, digest] for name, (stamp, digest) in (_read(self._file) | self._found).items()}
        with suppress(OSError):  # a home that is read-only, or full, or not there
            write_json(self._file, content)
        self._found = {}


def write_json(file: Path, content: object) -> None:
    """Write a JSON file that appears when it is whole; OSError if it cannot be, and nothing is left of it then."""
    unfinished = file.with_suffix(f".{secrets.token_hex(8)}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def digests_of(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 (hex) of the content of each file by its name below `root`, in the order of the names.

    Raises:
        DataError: a file cannot be read.
    """
    memory = DigestMemory(_memory_of(root))
    digests, named, progress = (
        {},
        sorted((file.relative_to(root).as_posix(), file) for file in files),
        wanted_progress(),
    )
    hashed = 0

    def told(done: int) -> None:
        progress("hashing files", done, len(named), unit="file", is_brief=True)

    for done, (name, path) in enumerate(named):

        def compute(path: Path = path, done: int = done) -> str:
            nonlocal hashed
            hashed += 1
            told(done)
            return _sha256(path)

        try:
            digests[name] = memory.digest_of(path.absolute(), compute)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
    memory.save()
    if hashed:
        told(len(named))
    return digests


class KnownFiles:
    """Files of a dataset whose digests are known, to be looked at again."""

    def __init__(self, root: Path, digests: Mapping[str, str]) -> None:
        """
        Args:
            root, digests: as `digests_of` took and gave them.
        """
        self._root, self._digests, self._memory = root, digests, DigestMemory(_memory_of(root))

    def changed(self, files: Iterable[Path]) -> str | None:
        """The name below the root of the first of these files that is another one now, or new, or gone; None: none."""
        for file in files:
            try:
                now = self._memory.digest_of(file.absolute(), partial(_sha256, file))
            except OSError:
                now = None
            if now != self._digests.get(name := file.relative_to(self._root).as_posix()):
                return name
        return None


def content_fingerprint(digests: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the names and contents of files, as `digests_of` has them."""
    total = hashlib.sha256()
    for name, digest in digests.items():
        total.update(f"{digest}  {name}\n".encode())
    return total.hexdigest()


def _memory_of(root: Path) -> Path | None:
    place = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:32]
    try:
        return user_cache() / "digests" / f"{place}.json"
    except RuntimeError:  # a user without a home
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp_of(file: Path) -> _Stamp:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read(file: Path) -> dict[str, tuple[_Stamp, str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): ((int(size), int(changed), int(inode_changed), int(inode)), str(digest))
            for name, (size, changed, inode_changed, inode, digest) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or a damaged one, which is made anew
        return {}

"""Copies of remote folders (`s3://…`, `gs://…`, `hf://…`: what fsspec knows) on this machine, made once and kept up to
date."""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlatrack.data.progress import FilesProgress
from vlatrack.errors import DISK_IS_FULL, DataError, MissingPackageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_UNFINISHED = ".partial"
_AT_ONCE = 8
_VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
"""What file systems call the thing that changes with the content of a file."""


@dataclass(frozen=True)
class _RemoteFile:
    name: str  # below the folder
    path: str  # as its file system knows it
    size: int
    version: str


def is_remote(path: str) -> bool:
    """Whether a path is the address of a remote folder."""
    return "://" in path


def shown(address: str) -> str:
    """An address without what may be a login: user, password and query."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def copies_folder() -> Path:
    """``$XDG_CACHE_HOME/vlatrack/datasets``, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlatrack" / "datasets"


def local_copy(address: str) -> Path:
    """A folder with the files of a remote one: downloads what is new or has changed there, removes what is gone.

    Whether a file has changed is told by its size and its version (an ETag or the like) there, and by its size and
    modification time here. A download that is interrupted goes on with the next call; processes wait for each other.

    Raises:
        DataError: it cannot be listed or read, or a file changes meanwhile, or the disk is full.
        MissingPackageError: the package for its kind of address is not installed.
    """
    copy = _Copy(copies_folder() / hashlib.sha256(address.encode()).hexdigest()[:32])
    with _clear_errors(address, copy.files):
        system, files = _listing(address)
        copy.files.mkdir(parents=True, exist_ok=True)
        with copy.locked():
            copy.update(system, files, shown(address))
    return copy.files


class _Copy:
    """A folder of copied files, and beside it a list of what they were copies of."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self._list = folder / "copied.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        descriptor = os.open(self._list.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # where there are no locks, two processes copy the same, each file in one piece
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def update(self, system: "AbstractFileSystem", wanted: Mapping[str, _RemoteFile], name: str) -> None:
        """Make the folder, which people know by this name, hold these files, and no others."""
        for here in sorted(self.files.rglob("*")):
            if here.is_file() and here.relative_to(self.files).as_posix() not in wanted:
                here.unlink()
        copied = self._copied()
        lacking = [
            file for file in wanted.values() if (mark := self._mark(file)) is None or copied.get(file.name) != mark
        ]
        if not lacking:
            return
        download = FilesProgress(f"downloading {name}", len(lacking))
        with self._list.open("a", encoding="utf-8") as marks, ThreadPoolExecutor(_AT_ONCE) as workers:
            try:
                for file in workers.map(lambda file: self._download(system, file, download), lacking):
                    marks.write(json.dumps([file.name, self._mark(file)]) + "\n")
                    marks.flush()
            except BaseException:
                workers.shutdown(cancel_futures=True)
                raise

    def _copied(self) -> dict[str, list[object]]:
        """What each file was a copy of when it was made; the last line may be cut off."""
        copied: dict[str, list[object]] = {}
        with suppress(FileNotFoundError):
            for line in self._list.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError):
                    name, mark = json.loads(line)
                    copied[name] = mark
        return copied

    def _mark(self, file: _RemoteFile) -> list[object] | None:
        """What is written down of a file; None: it is not here, or not whole."""
        try:
            here = (self.files / file.name).stat()
        except FileNotFoundError:
            return None
        return [file.size, file.version, here.st_mtime_ns] if here.st_size == file.size else None

    def _download(self, system: "AbstractFileSystem", file: _RemoteFile, download: FilesProgress) -> _RemoteFile:
        target = self.files / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            system.get_file(file.path, str(unfinished))
            if unfinished.stat().st_size != file.size:
                raise DataError(f"{file.path}: it changes while it is copied; try again when it does not")
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        download.add(files=1, size=file.size)
        return file


def _listing(address: str) -> "tuple[AbstractFileSystem, dict[str, _RemoteFile]]":
    """The files below an address by their names there."""
    from fsspec.core import url_to_fs

    if address.startswith("s3://"):
        import s3fs  # noqa: F401  # fsspec would find it by itself, and name another remedy where it is missing

    system, root = url_to_fs(address)
    system.invalidate_cache()
    found: dict[str, dict[str, Any]] = system.find(root, detail=True)
    prefix = root.rstrip("/") + "/"
    files = {}
    for path, about in found.items():
        name = path.removeprefix(prefix)
        if name == path or not _stays_inside(name):
            raise DataError(f"{shown(address)}: {path!r} is not inside it; do not trust this folder")
        version = next((str(about[key]) for key in _VERSION_KEYS if about.get(key) is not None), "")
        files[name] = _RemoteFile(name, path, int(about["size"]), version)
    if not files:
        raise FileNotFoundError
    return system, files


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    return not (pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name)


@contextmanager
def _clear_errors(address: str, copy: Path) -> Iterator[None]:
    """What file systems raise, each its own, as one line, in which nothing is quoted that may hold a secret."""
    place = shown(address)
    try:
        yield
    except (DataError, MissingPackageError):
        raise
    except ImportError as error:
        remedy = "vlatrack[s3]" if address.startswith("s3://") else error.name or "the package for it"
        raise MissingPackageError(f"{place}: needs a package that is not installed: pip install '{remedy}'") from None
    except FileNotFoundError:
        raise DataError(f"{place}: no such folder, or none that this login may see; check the address") from None
    except PermissionError:
        raise DataError(
            f"{place}: access is denied; check the login of this machine (for s3:// AWS_PROFILE or AWS_ACCESS_KEY_ID)"
        ) from None
    except Exception as error:  # each file system has its own
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            raise DataError(f"{copy}: no space for a copy of {place}; free some, or set XDG_CACHE_HOME") from None
        raise DataError(f"{place}: cannot be read ({type(error).__name__}); check address, network and login") from None

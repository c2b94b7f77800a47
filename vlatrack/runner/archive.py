"""A run in one file: written with the same bytes for the same run, and read without trusting it."""

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vlatrack.errors import DISK_IS_FULL, DataError, RunError, SpecError
from vlatrack.tracking.run_files import RunFiles

SUFFIX = ".tar.gz"
_GZIP = b"\x1f\x8b"
_CHECKPOINTS = "checkpoints"
_LEFT_OUT = ("wandb", "tensorboard", "delivery", ".cache")
"""What trackers keep in a run directory; `delivery` says where this user's trackers are."""
_MOST_FILES = 100_000
_MOST_BYTES = 64 << 30
_MOST_PACKED_RATIO = 200
"""Text of numbers is packed to a tenth; a file that grows more than so many times is no run."""
_RATIO_FROM = 64 << 20
_MOST_AT_ONCE = 16 << 20
"""What tarfile reads in one go is a header, of which no honest one is longer."""


def is_archive(file: Path) -> bool:
    """Whether a file is packed by gzip."""
    try:
        with file.open("rb") as stream:
            return stream.read(2) == _GZIP
    except OSError:
        return False


def write_archive(run: Path, file: Path, *, with_checkpoints: bool = False) -> int:
    """Write spec, manifest, journal, logs, evaluation tables and report of a run into one file; return its bytes.

    The same files give the same bytes, whenever and by whomever they are packed.

    Raises:
        DataError: it is no run directory.
        SpecError: the file is there already.
        RunError: it cannot be written.
    """
    files = RunFiles(run)
    if not files.journal.is_file():
        raise DataError(f"{run}: no run directory (journal.jsonl is missing)")
    if file.exists():
        raise SpecError(f"{file}: is there already; choose another file, or remove it")
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with (
            os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in _files_of(files.run_dir, with_checkpoints=with_checkpoints):
                _add(archive, path, f"{files.run_dir.name}/{path.relative_to(files.run_dir).as_posix()}")
        unfinished.replace(file)
    except OSError as error:
        remedy = "free some disk space" if error.errno in DISK_IS_FULL else "choose another file"
        raise RunError(f"{file}: cannot be written ({error.strerror}); {remedy}") from error
    finally:
        if unfinished.exists():  # on a disk that is read-only, the removal of nothing fails too
            unfinished.unlink()
    return file.stat().st_size


class _Headers(gzip.GzipFile):
    """Refuses to read much at once: tarfile takes the length of a header from the header itself."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST_AT_ONCE:
            raise ValueError(f"a header of {size:,} bytes" if size else "a header without length")
        return super().read(size)


@contextmanager
def opened_archive(file: Path) -> Iterator[Path]:
    """The run directory in an archive, unpacked into a private temporary folder, which is removed afterwards.

    Raises:
        DataError: it is damaged or no run, or has names that lead elsewhere, links, devices, or too much.
    """
    with tempfile.TemporaryDirectory(prefix="vlatrack-archive-") as folder:
        try:
            _unpack(file, Path(folder))
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
                raise
            told = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{file}: damaged, or no archive of a run ({told}); export it again") from error
        runs = [path for path in Path(folder).iterdir() if (path / "journal.jsonl").is_file()]
        if len(runs) != 1:
            raise DataError(f"{file}: no archive of a run; vlatrack export RUN --archive makes one")
        yield runs[0]


def _files_of(run: Path, *, with_checkpoints: bool) -> list[Path]:
    """In the order of their names; links are left out, which no run has."""
    found = []
    for path in sorted(run.rglob("*"), key=lambda path: path.relative_to(run).as_posix()):
        parts = path.relative_to(run).parts
        is_left_out = parts[0] in _LEFT_OUT or (parts[0] == _CHECKPOINTS and not with_checkpoints)
        if not is_left_out and not path.name.endswith(".lock") and path.is_file() and not path.is_symlink():
            found.append(path)
    return found


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as stream:
        member = tarfile.TarInfo(name)
        member.size, member.mode = os.fstat(stream.fileno()).st_size, 0o600
        archive.addfile(member, stream)  # a journal that grows meanwhile is packed as far as it went


def _unpack(file: Path, folder: Path) -> None:
    """Each member is looked at before its bytes are written: only plain files, below the folder, and not too much."""
    packed, total, count = file.stat().st_size, 0, 0
    with _Headers(file, "rb") as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for member in archive:
            count, total = count + 1, total + max(0, member.size)
            if total > _MOST_BYTES or (total > _RATIO_FROM and total > packed * _MOST_PACKED_RATIO):
                raise DataError(f"{file}: would unpack to more than {total >> 20} MiB; it is not read")
            if count > _MOST_FILES:
                raise DataError(f"{file}: has more than {_MOST_FILES:,} files; it is not read")
            parts = PurePosixPath(member.name).parts
            if member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name or not parts:
                raise DataError(f"{file}: holds {member.name!r}, which lies outside of the run; it is not read")
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{file}: holds {member.name!r}, a link or device, which no run has; it is not read")
            source = archive.extractfile(member)
            assert source is not None, "a regular file has content"
            target = folder.joinpath(*parts)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("xb") as stream:
                shutil.copyfileobj(source, stream)

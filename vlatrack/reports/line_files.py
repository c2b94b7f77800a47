"""Text files of a run that grow by whole lines, and lose their end when a run goes back."""

import os
from pathlib import Path

from vlatrack.errors import DataError


def read_text(path: Path) -> str:
    """The content of the file; DataError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; restore the file") from error


def append_text(path: Path, text: str, *, heading: str = "") -> None:
    """Append to the file, which begins with `heading`; DataError if it cannot be written."""
    try:
        with path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(text if stream.tell() else heading + text)
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of what the file holds, in one step; DataError if it cannot be written."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    finally:
        if unfinished.exists():  # on a disk that is read-only, the removal of nothing fails too
            unfinished.unlink()


def _cannot_be_written(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); free space or make it writable")

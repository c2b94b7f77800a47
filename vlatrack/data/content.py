"""The identity of a dataset: what is in its files, wherever they are."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from vlatrack.errors import DataError


def content_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 (hex) over the names below `root` and the contents of `files`, in the order of the names.

    Raises:
        DataError: a file cannot be read.
    """
    total = hashlib.sha256()
    for name, path in sorted((file.relative_to(root).as_posix(), file) for file in files):
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
        total.update(f"{content.hexdigest()}  {name}\n".encode())
    return total.hexdigest()

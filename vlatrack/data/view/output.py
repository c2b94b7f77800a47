"""The file that is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlatrack.data.formats.lerobot.files import writing


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path`, with the same suffix, under which the file grows; at the end of the block it is renamed, or
    removed if the block raised.

    Raises:
        DataError: the operating system does not let it be written.
    """
    unfinished = path.with_name(f".{path.stem}.partial{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

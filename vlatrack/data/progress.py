"""How far something long has come, told to whoever wants to know: what opens a dataset is called from many places, and
may have to download it or to read all of its episodes.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from vlatrack.data.episodes import CountsEpisodes, EpisodeSource


class Progress(Protocol):
    """Is told that `done` of `total` are done."""

    def __call__(
        self, name: str, done: int, total: int, *, unit: str, details: Sequence[str] = (), is_brief: bool = False
    ) -> None:
        """
        Args:
            name: what goes on.
            unit: what is counted, in the singular.
            details: what else there is to say.
            is_brief: it mostly takes a moment.
        """


_wanted: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """Inside, this is told how far downloads, the hashing of files and the reading of episodes have come."""
    token = _wanted.set(progress)
    try:
        yield
    finally:
        _wanted.reset(token)


def no_progress(
    name: str, done: int, total: int, *, unit: str, details: Sequence[str] = (), is_brief: bool = False
) -> None:
    """Told where nobody has asked."""


def wanted_progress() -> Progress:
    """Who is to be told."""
    return _wanted.get() or no_progress


def reading_progress(source: EpisodeSource) -> Callable[[int], None] | None:
    """What is told how many episodes have been read, and tells it on; None: nobody has asked, or how many there are is
    not known before."""
    progress = _wanted.get()
    if progress is None or not isinstance(source, CountsEpisodes):
        return None
    name, total = f"reading {source.name}", source.episode_count
    return lambda done: progress(name, done, total, unit="episode", is_brief=True)


class FilesProgress:
    """Tells of files that are gone through, perhaps by several threads: their number, and the megabytes so far."""

    def __init__(self, name: str, files: int) -> None:
        """
        Args:
            name: what goes on, for people.
            files: how many there are.
        """
        self._name, self._files, self._progress = name, files, _wanted.get()
        self._done, self._bytes = 0, 0
        self._lock = threading.Lock()

    def add(self, *, files: int = 0, size: int = 0) -> None:
        """So many more files are done, and so many more bytes."""
        with self._lock:
            self._done, self._bytes = self._done + files, self._bytes + size
            self._tell()

    def reached(self, size: int) -> None:
        """So many bytes are done in all."""
        with self._lock:
            self._bytes = max(self._bytes, size)
            self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            details = [f"{self._bytes / 1e6:,.0f} MB"]
            self._progress(self._name, self._done, self._files, unit="file", details=details, is_brief=True)


def hub_bars(what: str) -> type[Any] | None:
    """What huggingface_hub takes instead of its own progress bars; None if nobody is to be told but by these."""
    if _wanted.get() is None:
        return None
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """One of the bars of a download, of files or of bytes, which draws nothing."""

        _files: FilesProgress | None = None

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._of_bytes, self._size = options.get("unit") == "B", 0
            if not self._of_bytes:
                type(self)._files = FilesProgress(f"downloading {what}", int(options.get("total") or 0))

        def update(self, n: float | None = 1) -> None:
            """So many more are done."""
            files, more = type(self)._files, int(n or 0)
            if files is None:
                return
            if self._of_bytes:
                self._size += more
                files.reached(self._size)
            else:
                files.add(files=more)

    return Bar

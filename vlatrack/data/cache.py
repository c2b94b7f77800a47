"""Image codes of a set of episodes, computed once and kept as an Arrow file.

Encoding images is the slow part of preparing data and depends only on the images and the image tokenizer, so the cache
key is those two fingerprints, the camera and the episodes.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource, checked_frames
from vlatrack.errors import DataError

Codes = NDArray[np.int64]
Progress = Callable[[int, int], None]  # frames done, frames in all

_UNFINISHED = ".partial"
ABANDONED_AFTER_S = 24 * 3600  # a file that another host writes grows with every episode


def user_cache() -> Path:
    """The folder for image codes that belong to no run: ``$XDG_CACHE_HOME/vlatrack/codes``, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlatrack" / "codes"


class FrameEncoder(Protocol):
    """What the cache needs of an image tokenizer."""

    @property
    def codes_per_side(self) -> int: ...

    def encode(self, frames: NDArray[np.uint8]) -> Codes: ...

    def fingerprint(self) -> str: ...


class CodeCache:
    """Arrow files below one folder, one for each (dataset, camera, episodes, tokenizer)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def codes(
        self,
        source: EpisodeSource,
        episodes: Sequence[Episode],
        camera: str,
        encoder: FrameEncoder,
        progress: Progress | None = None,
    ) -> list[Codes]:
        """Token ids int64 [T, R, C] of one camera, for each episode; encoded now or read from the cache.

        A damaged file of the cache is written anew.

        Raises:
            DataError: the dataset cannot be read, an episode's frames and actions differ in number, or the cache
                cannot be read or written.
        """
        parts = (source.fingerprint(), camera, encoder.fingerprint(), ",".join(str(e.index) for e in episodes))
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        file = self._folder / f"{key}.arrow"
        lengths, side = [episode.length for episode in episodes], encoder.codes_per_side
        stored = _read(file, lengths, side)
        if stored is None:
            self._write(file, _encode(source, episodes, camera, encoder, progress), side)
            stored = _read(file, lengths, side)
            if stored is None:
                raise DataError(f"{file}: damaged right after it was written; check the disk")
        return stored

    def _write(self, file: Path, encoded: Iterator[Codes], side: int) -> None:
        """One record batch for each episode, into a file that appears when it is whole."""
        schema = pa.schema([("codes", pa.list_(pa.int32(), side**2))])
        # A name of its own: two runs that start together must not write into one another's file.
        unfinished = file.with_suffix(f".{socket.gethostname()}.{os.getpid()}{_UNFINISHED}")
        with _may_fail(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._folder)
            sink = pa.OSFile(str(unfinished), "wb")
        try:
            with _may_fail(self._folder):
                writer = pa.ipc.new_file(sink, schema)
            for codes in encoded:
                column = pa.FixedSizeListArray.from_arrays(pa.array(codes.astype(np.int32).ravel()), side**2)
                with _may_fail(self._folder):
                    writer.write_batch(pa.record_batch([column], schema=schema))
            with _may_fail(self._folder):
                writer.close()
                sink.close()
                unfinished.replace(file)
        finally:
            sink.close()
            unfinished.unlink(missing_ok=True)


def _encode(
    source: EpisodeSource,
    episodes: Sequence[Episode],
    camera: str,
    encoder: FrameEncoder,
    progress: Progress | None,
) -> Iterator[Codes]:
    done, total = 0, sum(episode.length for episode in episodes)
    for episode in episodes:
        yield encoder.encode(checked_frames(source, episode, camera))
        done += episode.length
        if progress is not None:
            progress(done, total)


def _read(file: Path, lengths: Sequence[int], side: int) -> list[Codes] | None:
    """The codes of each episode; None if there is no file, or a damaged one."""
    try:
        with pa.memory_map(str(file)) as mapped:
            stored = pa.ipc.open_file(mapped)
            columns = [stored.get_batch(number).column(0) for number in range(stored.num_record_batches)]
            if [len(column) for column in columns] != list(lengths):
                return None
            flat = [column.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for column in columns]
    except PermissionError:
        raise DataError(f"{file}: image codes cannot be read; make the file readable, or remove it") from None
    except (pa.ArrowException, OSError):  # pyarrow raises either for a file that is cut off
        return None
    return [codes.reshape(-1, side, side) for codes in flat]


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed run left unfinished: one of this host, or one that nobody writes to any more."""
    for file in folder.glob(f"*{_UNFINISHED}"):
        host, _, pid = file.name.removesuffix(_UNFINISHED).partition(".")[2].rpartition(".")
        died = host == socket.gethostname() and pid.isdecimal() and not psutil.pid_exists(int(pid))
        if died or time.time() - file.stat().st_mtime > ABANDONED_AFTER_S:
            file.unlink(missing_ok=True)


@contextmanager
def _may_fail(folder: Path) -> Iterator[None]:
    """Tell in one line why the cache cannot be written: a full disk, a quota, permissions."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise DataError(f"{folder}: image codes cannot be written ({reason}); free space or make it writable") from None

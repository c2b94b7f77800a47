"""Image codes of a set of episodes, computed once and kept as an Arrow file.

Encoding images is the slow part of preparing data and depends only on the images and the image tokenizer, so the cache
key is those two fingerprints, the camera and the episodes.
"""

import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource, checked_frames, frame_digests
from vlatrack.errors import DataError

Codes = NDArray[np.int64]
Progress = Callable[[int, int], None]  # frames done, frames in all

_DIGEST_BYTES = hashlib.sha256().digest_size
_COLUMNS = ("codes", "frame_digests")
_UNFINISHED = ".partial"
_UNTIL_LOCKED_S = 1.0
"""A new file is locked a moment after it appears."""
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
    """Arrow files below one folder, one for each (dataset, camera, episodes, tokenizer).

    Behind the Arrow content stands its SHA-256, which is compared before anything is read from it: a bit that has
    changed would be another token.
    """

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
        file = self._file(source, episodes, camera, encoder)
        lengths, side = [episode.length for episode in episodes], encoder.codes_per_side
        stored = _read(file, lengths, side)
        if stored is None:
            self._write(file, _encode(source, episodes, camera, encoder, progress), side)
            stored = _read(file, lengths, side)
            if stored is None:
                raise DataError(f"{file}: damaged right after it was written; check the disk")
        return stored

    def frame_digests(
        self, source: EpisodeSource, episodes: Sequence[Episode], camera: str, encoder: FrameEncoder
    ) -> list[NDArray[np.uint32]] | None:
        """Digests uint32 [T] of the frames that the codes of each episode were made from; None if they are not cached,
        or an earlier vlatrack, which kept none, has encoded them."""
        columns = _columns(self._file(source, episodes, camera, encoder), [episode.length for episode in episodes])
        if columns is None or any(len(of_episode) < len(_COLUMNS) for of_episode in columns):
            return None
        return [of_episode[1].to_numpy() for of_episode in columns]

    def _file(self, source: EpisodeSource, episodes: Sequence[Episode], camera: str, encoder: FrameEncoder) -> Path:
        parts = (source.fingerprint(), camera, encoder.fingerprint(), ",".join(str(e.index) for e in episodes))
        return self._folder / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}.arrow"

    def _write(self, file: Path, encoded: Iterator[tuple[Codes, NDArray[np.uint32]]], side: int) -> None:
        """One record batch for each episode, into a file that appears when it is whole."""
        types = (pa.list_(pa.int32(), side**2), pa.uint32())
        schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
        # A name of its own: two runs that start together must not write into one another's file. The pid alone would
        # not do, since runs in containers may share both it and the host's name.
        unfinished = file.with_suffix(f".{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}{_UNFINISHED}")
        with _may_fail(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._folder)
            claim = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            sink = pa.OSFile(str(unfinished), "wb")
        try:
            with _may_fail(self._folder):
                with suppress(OSError):  # where there are no locks, the age of the file speaks for this process
                    _lock(claim)
                writer = pa.ipc.new_file(sink, schema)
            for codes, digests in encoded:
                column = pa.FixedSizeListArray.from_arrays(pa.array(codes.astype(np.int32).ravel()), side**2)
                with _may_fail(self._folder):
                    writer.write_batch(pa.record_batch([column, pa.array(digests)], schema=schema))
            with _may_fail(self._folder):
                writer.close()
                sink.close()
                with unfinished.open("rb") as content:
                    os.write(claim, hashlib.file_digest(content, "sha256").digest())
                os.fsync(claim)
                unfinished.replace(file)
        finally:
            sink.close()
            os.close(claim)
            unfinished.unlink(missing_ok=True)


def _encode(
    source: EpisodeSource,
    episodes: Sequence[Episode],
    camera: str,
    encoder: FrameEncoder,
    progress: Progress | None,
) -> Iterator[tuple[Codes, NDArray[np.uint32]]]:
    done, total = 0, sum(episode.length for episode in episodes)
    for episode in episodes:
        frames = checked_frames(source, episode, camera)
        yield encoder.encode(frames), frame_digests(frames)
        done += episode.length
        if progress is not None:
            progress(done, total)


def _read(file: Path, lengths: Sequence[int], side: int) -> list[Codes] | None:
    """The codes of each episode; None if there is no file, or a damaged one."""
    columns = _columns(file, lengths)
    if columns is None:
        return None
    flat = [codes.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for codes, *_ in columns]
    return [codes.reshape(-1, side, side) for codes in flat]


def _columns(file: Path, lengths: Sequence[int]) -> list[list[pa.Array]] | None:
    """What is kept of each episode; None if there is no file, or a damaged one."""
    try:
        with pa.memory_map(str(file)) as mapped:
            whole = mapped.read_buffer()
            content, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != digest.to_pybytes():
                return None
            stored = pa.ipc.open_file(content)
            batches = [stored.get_batch(number) for number in range(stored.num_record_batches)]
            return [batch.columns for batch in batches] if [len(b) for b in batches] == list(lengths) else None
    except PermissionError:
        raise DataError(f"{file}: image codes cannot be read; make the file readable, or remove it") from None
    except (pa.ArrowException, OSError):  # pyarrow raises either for a file that is cut off
        return None


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left unfinished."""
    for file in folder.glob(f"*{_UNFINISHED}"):
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
def _may_fail(folder: Path) -> Iterator[None]:
    """Tell in one line why the cache cannot be written: a full disk, a quota, permissions."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise DataError(f"{folder}: image codes cannot be written ({reason}); free space or make it writable") from None

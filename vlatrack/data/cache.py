"""Image codes of a set of episodes, computed once and kept as an Arrow file.

Encoding pictures is the slow part of preparing data and depends only on the pictures and the image
tokenizer, so the cache key is those two fingerprints, the camera and the episodes.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource
from vlatrack.errors import DataError

Codes = NDArray[np.int64]
Progress = Callable[[int, int], None]  # frames done, frames in all


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

        Raises:
            DataError: the dataset cannot be read, or an episode's pictures and actions differ in number.
        """
        file = self._folder / f"{_key(source, episodes, camera, encoder)}.arrow"
        if not file.exists():
            self._write(file, source, episodes, camera, encoder, progress)
        with pa.memory_map(str(file)) as mapped:
            stored = pa.ipc.open_file(mapped)
            batches = [stored.get_batch(i) for i in range(stored.num_record_batches)]
        side = encoder.codes_per_side
        return [
            batch.column(0).flatten().to_numpy(zero_copy_only=False).astype(np.int64).reshape(-1, side, side)
            for batch in batches
        ]

    def _write(
        self,
        file: Path,
        source: EpisodeSource,
        episodes: Sequence[Episode],
        camera: str,
        encoder: FrameEncoder,
        progress: Progress | None,
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("codes", pa.list_(pa.int32(), encoder.codes_per_side**2))])
        # A name of its own: two runs that start together must not write into one another's file.
        unfinished = file.with_suffix(f".{os.getpid()}.partial")
        done, total = 0, sum(episode.length for episode in episodes)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for episode in episodes:
                frames = source.frames(episode, camera)
                if len(frames) != episode.length:
                    raise DataError(
                        f"{source.name}: episode {episode.index} has {episode.length} actions "
                        f"but {len(frames)} pictures of {camera}"
                    )
                flat = encoder.encode(frames).astype(np.int32).ravel()
                column = pa.FixedSizeListArray.from_arrays(pa.array(flat), encoder.codes_per_side**2)
                writer.write_batch(pa.record_batch([column], schema=schema))
                done += episode.length
                if progress is not None:
                    progress(done, total)
        unfinished.replace(file)


def _key(source: EpisodeSource, episodes: Sequence[Episode], camera: str, encoder: FrameEncoder) -> str:
    indices = ",".join(str(episode.index) for episode in episodes)
    parts = (source.fingerprint(), camera, encoder.fingerprint(), indices)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

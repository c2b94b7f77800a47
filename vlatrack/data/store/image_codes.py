"""Image codes of the episodes of a dataset, in shards that are written once and memory-mapped.

Legend: T steps of an episode, R x C codes of an image.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.augmentation import Variant
from vlatrack.data.digests import DigestMemory
from vlatrack.data.episodes import Episode, EpisodeSource, frame_digests, frame_pieces
from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable, Ints
from vlatrack.data.store.scattered_rows import ScatteredRows
from vlatrack.data.store.verified_files import open_verified, write_verified

Codes = NDArray[np.int64]
Progress = Callable[[int, int], None]  # frames done, frames in all

_EPISODES, _KEY = b"episodes", b"key"
"""In the metadata of a shard: the positions of its episodes in the table, and the folder that it belongs to."""


class FrameEncoder(Protocol):
    """What the store needs of an image tokenizer."""

    @property
    def codes_per_side(self) -> int: ...

    def encode(self, frames: NDArray[np.uint8]) -> Codes: ...

    def fingerprint(self) -> str: ...


class ImageIds(Protocol):
    """The ids of one camera's images, at every step of a list of episodes."""

    @property
    def side(self) -> int:
        """Codes on each side of an image."""

    def gather(self, numbers: Ints, steps: Ints, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """See `ImageCodes.gather`."""


class ImageCodes:
    """The codes of one camera at every step of a list of episodes, memory-mapped and so shared by processes."""

    def __init__(
        self, shards: Sequence[NDArray[np.integer]], shard_of: Ints, starts: Ints, *, side: int, first_id: int
    ) -> None:
        """
        Args:
            shards: [steps, R * C] codes.
            shard_of, starts: where the codes of each episode are.
            side: codes on each side of an image.
            first_id: the token id of code 0.
        """
        self._shards, self._shard_of, self._starts = shards, shard_of, starts
        self._rows = ScatteredRows(shards)
        self.side, self.first_id = side, first_id

    @classmethod
    def of(cls, ids: Sequence[Codes], *, first_id: int = 0) -> "ImageCodes":
        """Those of episodes in memory: token ids [T, R, C] of each."""
        flat = [(of_episode - first_id).reshape(len(of_episode), -1) for of_episode in ids]
        zeros = np.zeros(len(flat), np.int64)
        return cls(flat, np.arange(len(flat)), zeros, side=ids[0].shape[1], first_id=first_id)

    @classmethod
    def joined(cls, parts: Sequence["ImageCodes"]) -> "ImageCodes":
        """Those of several lists of episodes, one after another."""
        first = np.cumsum([0, *(len(part._shards) for part in parts)])
        shard_of = [part._shard_of + begin for part, begin in zip(parts, first, strict=False)]
        shards = [shard for part in parts for shard in part._shards]
        starts = np.concatenate([part._starts for part in parts])
        return cls(shards, np.concatenate(shard_of), starts, side=parts[0].side, first_id=parts[0].first_id)

    def gather(self, numbers: Ints, steps: Ints, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Token ids [n, m, R * C] of episodes of the list.

        Args:
            numbers: [n] of the episodes.
            steps: [n, m] steps of each.
            out: where to write them; None: to a new array.
        """
        found = self._rows.gather(self._shard_of[numbers], self._starts[numbers][:, None] + steps)
        return np.add(found, self.first_id, out=out, dtype=np.int32)


@dataclass(frozen=True)
class CodeShards:
    """The files of one camera's codes, one for each shard of a table.

    A shard has the episodes that somebody has needed so far; a shard that lacks one is written anew with it.
    """

    folder: Path  # for this content, camera and image tokenizer alone
    source: EpisodeSource
    table: EpisodeTable
    camera: str
    encoder: FrameEncoder
    first_id: int
    memory: DigestMemory
    variant: Variant | None = None  # in which frames are changed before they are encoded

    def file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.arrow"

    def missing(self, episodes: EpisodeList) -> list[int]:
        """The shards that lack an episode of the list, or are damaged, or not there."""
        needed = episodes.by_shard
        return [shard for shard, positions in needed.items() if self._read(shard, positions) is None]

    def steps(self, shard: int, episodes: EpisodeList) -> int:
        """How many steps a shard's episodes in the list have."""
        return int(self.table.lengths[episodes.by_shard[shard]].sum())

    def encode(
        self,
        shard: int,
        episodes: EpisodeList,
        *,
        progress: Callable[[int], None] = lambda frames: None,
        before_writing: Callable[[EpisodeList], None] = lambda episodes: None,
    ) -> None:
        """Write a shard with its episodes of the list, and those that it has already.

        Args:
            progress: told the frames of each piece that is encoded.
            before_writing: told the episodes that have been read; raises if nothing is to be written.

        Raises:
            DataError: frames cannot be read, or the shard cannot be written.
        """
        wanted = episodes.by_shard[shard].tolist()
        if self._read(shard, wanted) is not None:  # another process was faster
            progress(self.steps(shard, episodes))
            return
        kept = self._read(shard, [])
        parts = {} if kept is None else kept.by_episode(self.table)
        read = [position for position in wanted if position not in parts]
        for position in read:
            parts[position] = self._encoded(self.table.episode(position), progress)
        positions = sorted(parts)
        codes, digests = (np.concatenate([parts[position][place] for position in positions]) for place in (0, 1))
        before_writing(EpisodeList(self.table, read))
        column = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), self.encoder.codes_per_side**2)
        schema = self._schema.with_metadata({_EPISODES: json.dumps(positions), _KEY: self.folder.name})
        write_verified(self.file(shard), schema, [pa.record_batch([column, pa.array(digests)], schema=schema)])

    def open(self, episodes: EpisodeList) -> ImageCodes | None:
        """The codes of a list of episodes; None if a shard lacks one, or is damaged."""
        shards = list[NDArray[np.uint16]]()
        shard_of, starts = np.empty((2, len(episodes)), np.int64)
        number_of = np.empty(len(self.table), np.int64)  # in the list, by position in the table
        number_of[episodes.positions] = np.arange(len(episodes))
        for shard, positions in episodes.by_shard.items():
            found = self._read(shard, positions)
            if found is None:
                return None
            numbers = number_of[positions]
            shard_of[numbers] = len(shards)
            starts[numbers] = found.starts(self.table)[np.searchsorted(found.positions, positions)]
            shards.append(found.codes)
        return ImageCodes(shards, shard_of, starts, side=self.encoder.codes_per_side, first_id=self.first_id)

    def frame_digests(self, episodes: EpisodeList) -> list[NDArray[np.uint32]] | None:
        """Digests uint32 [T] of the frames that each episode's codes were made from; None if they are not there."""
        found: dict[int, NDArray[np.uint32]] = {}
        for shard, positions in episodes.by_shard.items():
            stored = self._read(shard, positions)
            if stored is None:
                return None
            found |= {position: digests for position, (_, digests) in stored.by_episode(self.table).items()}
        return [found[int(position)] for position in episodes.positions]

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema(
            [("codes", pa.list_(pa.uint16(), self.encoder.codes_per_side**2)), ("frame_digests", pa.uint32())]
        )

    def _read(self, shard: int, needed: Sequence[int] | Ints) -> "_StoredShard | None":
        verified = open_verified(self.file(shard), self._schema, self.memory)
        if verified is None or verified.reader.num_record_batches != 1:
            return None
        told = verified.reader.schema.metadata or {}
        if told.get(_KEY) != self.folder.name.encode():
            return None
        positions = np.array(json.loads(told[_EPISODES]), np.int64)
        if not np.isin(needed, positions, assume_unique=True).all():
            return None
        codes, digests = verified.reader.get_batch(0).columns
        flat = codes.flatten().to_numpy().reshape(len(codes), -1)
        return _StoredShard(positions, flat, digests.to_numpy())

    def _encoded(
        self, episode: Episode, progress: Callable[[int], None]
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
        codes, digests = [], []
        for frames in frame_pieces(self.source, episode, self.camera):
            shown = frames if self.variant is None else self.variant.of(frames, episode.index, self.camera)
            found = self.encoder.encode(shown).reshape(len(frames), -1) - self.first_id
            assert not found.size or (found.min() >= 0 and found.max() <= np.iinfo(np.uint16).max), "not image codes"
            codes.append(found.astype(np.uint16))
            digests.append(frame_digests(frames))
            progress(len(frames))
        return np.concatenate(codes), np.concatenate(digests)


@dataclass(frozen=True)
class _StoredShard:
    positions: Ints  # of its episodes in the table, rising
    codes: NDArray[np.uint16]  # [steps, R * C]
    digests: NDArray[np.uint32]  # [steps]

    def starts(self, table: EpisodeTable) -> Ints:
        """Where each episode begins."""
        lengths = table.lengths[self.positions]
        return np.cumsum(lengths) - lengths

    def by_episode(self, table: EpisodeTable) -> dict[int, tuple[NDArray[np.uint16], NDArray[np.uint32]]]:
        ends = self.starts(table)[1:]
        parts = zip(np.split(self.codes, ends), np.split(self.digests, ends), strict=True)
        return dict(zip(self.positions.tolist(), parts, strict=True))

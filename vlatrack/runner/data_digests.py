"""What the data of a run was, small enough to keep and fine enough to say later which frame is another."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.builders.data import Split
from vlatrack.data.episodes import Episode, KnowsFiles, checked_frames, episodes_digest, frame_digests
from vlatrack.data.samples import Encoding
from vlatrack.data.store.image_codes import CodeShards
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.errors import DataError
from vlatrack.tracking.privacy import write_private

FILE = "data_digests.json"
_MOST_BYTES = 256 << 20
_MOST_STEPS = 1_000_000
_MOST_LINES = 10
_MOST_FRAMES = 5
_DIGITS = 8
"""Of one frame, in hexadecimal."""


@dataclass(frozen=True)
class EpisodeDigests:
    """Of one episode: of its instruction, actions and states, and of each frame of each camera, joined."""

    index: int
    numbers: str
    frames: Mapping[str, str]


@dataclass(frozen=True)
class SplitDigests:
    """Of the files of a dataset, by their names in it, and of the episodes that a split uses.

    Of a split with very many frames, only those of the files.
    """

    files: Mapping[str, str]
    episodes: Sequence[EpisodeDigests]

    @classmethod
    def of(cls, split: Split, encoding: Encoding, store: TokenStore) -> Self:
        """Of a split whose image codes are in the store, as are the digests of the frames that they were made from."""
        if split.episodes.lengths.sum() > _MOST_STEPS:
            return cls(_files_of(split), [])
        of_camera = partial(store.shards, encoder=encoding.images, first_id=encoding.layout.first_image_code)
        cached = {camera: _frame_digests_of(split, partial(of_camera, camera=camera)) for camera in encoding.cameras}
        known = {camera: digests for camera, digests in cached.items() if digests is not None}
        episodes = [
            EpisodeDigests(
                episode.index,
                episodes_digest([episode])[:16],
                {camera: _joined(digests[number]) for camera, digests in known.items()},
            )
            for number, episode in enumerate(split.episodes)
        ]
        return cls(_files_of(split), episodes)

    def differences(self, name: str, now: Split) -> Iterator[str]:
        """In which files, episodes and frames the split of this name is another now, a line each; reads its frames."""
        files = _files_of(now)
        if self.files and files:
            for file in sorted({*self.files, *files}):
                if self.files.get(file) != files.get(file):
                    what = "is gone" if file not in files else "differs" if file in self.files else "is new"
                    yield f"file {file} of {now.source.name} {what}"
        present = {episode.index: episode for episode in now.episodes} if self.episodes else {}
        for recorded in self.episodes:
            place = f"episode {recorded.index} of {name} ({now.source.name})"
            episode = present.pop(recorded.index, None)
            if episode is None:
                yield f"{place}: is gone"
                continue
            if episodes_digest([episode])[:16] != recorded.numbers:
                yield f"{place}: its instruction, actions or states differ"
            for camera, then in recorded.frames.items():
                if (found := _frame_difference(then, now, episode, camera)) is not None:
                    yield f"{place}: {camera}: {found}"
        yield from (f"episode {index} of {name} ({now.source.name}): is new" for index in present)


def _frame_digests_of(
    split: Split, shards_of: Callable[[StoredDataset], CodeShards]
) -> list[NDArray[np.uint32]] | None:
    """Of each episode of a split; None if one has none."""
    parts = [shards_of(dataset).frame_digests(episodes) for dataset, episodes in split.parts]
    return None if any(part is None for part in parts) else [digests for part in parts for digests in part or ()]


def write_data_digests(file: Path, splits: Mapping[str, SplitDigests]) -> None:
    """Write those of all splits of a run."""
    write_private(file, json.dumps({name: asdict(split) for name, split in splits.items()}) + "\n")


def read_data_digests(file: Path) -> dict[str, SplitDigests]:
    """Those of a run; none of one that has no such file, as those of earlier versions.

    Raises:
        DataError: the file is damaged.
    """
    if not file.is_file() or file.is_symlink():
        return {}
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(f"{file}: too large; remove it to repeat the run without it")
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): _split_of(split) for name, split in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}); remove it to repeat the run without it") from error


def told_differences(recorded: Mapping[str, SplitDigests], name: str, now: Split) -> list[str]:
    """The first differences of a split, a line each, and how many more there are; none if nothing finer is known."""
    if name not in recorded:
        return []
    lines = list(recorded[name].differences(name, now))
    if not lines:
        return ["no episode and no frame of it differs: what else is in the files does"]
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and {more:,} more differences"]


def _files_of(split: Split) -> Mapping[str, str]:
    return split.source.file_digests() if isinstance(split.source, KnowsFiles) else {}


def _split_of(content: Mapping[str, Any]) -> SplitDigests:
    episodes = [
        EpisodeDigests(
            int(episode["index"]),
            str(episode["numbers"]),
            {str(camera): str(digests) for camera, digests in episode["frames"].items()},
        )
        for episode in content["episodes"]
    ]
    return SplitDigests({str(name): str(digest) for name, digest in content["files"].items()}, episodes)


def _joined(digests: NDArray[np.uint32]) -> str:
    return "".join(f"{digest:0{_DIGITS}x}" for digest in digests.tolist())


def _frame_difference(then: str, split: Split, episode: Episode, camera: str) -> str | None:
    """Which frames of a camera are others now, counted from 0; None if all are the same."""
    if camera not in split.source.cameras:
        return "is gone"
    try:
        now = frame_digests(checked_frames(split.source, episode, camera))
    except DataError as error:
        return f"cannot be read any more ({error})"
    before = [then[at : at + _DIGITS] for at in range(0, len(then), _DIGITS)]
    after = [_joined(now[at : at + 1]) for at in range(len(now))]
    if len(before) != len(after):
        return f"{len(before)} frames then, {len(after)} now"
    frames = [number for number, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if not frames:
        return None
    if len(frames) == 1:
        return f"frame {frames[0]} differs"
    named = ", ".join(map(str, frames[:_MOST_FRAMES])) + (" …" if len(frames) > _MOST_FRAMES else "")
    return f"{len(frames)} frames differ ({named})"

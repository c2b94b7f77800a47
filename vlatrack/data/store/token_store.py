"""The folder of what is computed once from datasets, by their content: tables of episodes, image codes, statistics."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatrack.data.augmentation import Variant
from vlatrack.data.digests import DigestMemory, write_json
from vlatrack.data.episodes import EpisodeSource, FindsChangedFiles, KnowsFiles
from vlatrack.data.mapping import MappedSource
from vlatrack.data.progress import reading_progress
from vlatrack.data.store.episode_table import EpisodeList, EpisodeTable, open_table
from vlatrack.data.store.image_codes import CodeShards, FrameEncoder, ImageCodes, Progress
from vlatrack.data.store.verified_files import exclusively
from vlatrack.errors import DataError

_VERSION = "2"
"""Of how episodes and codes are stored; one that changes it makes them anew."""


@dataclass(frozen=True)
class StoredDataset:
    """An open dataset, its episodes, and what tells its content from that of others."""

    source: EpisodeSource
    table: EpisodeTable
    key: str
    image_key: str  # of its images alone, whatever is made of actions and states and however cameras are called
    reopen: Callable[[], EpisodeSource] | None  # opens it anew, to see whether it is the same still
    opened_ns: int  # a moment before its files were hashed

    def image_camera(self, camera: str) -> str:
        """What a camera is called where the images come from."""
        return self.source.old_name(camera) if isinstance(self.source, MappedSource) else camera

    def check_unchanged(self, episodes: EpisodeList | None = None) -> None:
        """Raise DataError if the files of the dataset are others than when it was opened.

        Args:
            episodes: it is enough to look at the files of these, if the dataset can tell which they are.
        """
        source = self.source.source if isinstance(self.source, MappedSource) else self.source
        if episodes is None or not isinstance(source, FindsChangedFiles):
            _check_unchanged(self.source, self.reopen)
            return
        for episode in episodes:
            if (file := source.changed_file(episode)) is not None:
                raise _changed(self.source, f" ({file})")


class TokenStore:
    """Verified files below one folder, which runs, processes and hosts share. Nothing half-written is ever read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory = DigestMemory(folder / "verified.json")

    def dataset(
        self,
        source: EpisodeSource,
        *,
        settings: str = "",
        image_settings: str | None = None,
        skip_bad: bool = False,
        reopen: Callable[[], EpisodeSource] | None = None,
    ) -> StoredDataset:
        """A dataset with the table of its episodes, which is read from the dataset at the first time: how far that has
        come is told by `vlatrack.data.progress`.

        Args:
            settings: what of the source's settings decides its content, beside its files.
            image_settings: what of them decides which episodes there are, and their images; None: all.
            skip_bad: go on after an episode that cannot be read; the table says which, and why.
            reopen: opens the dataset anew.

        Raises:
            DataError: the dataset cannot be read or changes meanwhile, or the store cannot be written.
        """
        opened_ns = time.time_ns()
        key = _key(_VERSION, source.fingerprint(), settings, str(skip_bad))
        folder = self.folder / "episodes" / key
        with exclusively(folder.with_suffix(".lock")):
            table = open_table(
                folder,
                source,
                self._memory,
                skip_bad=skip_bad,
                progress=reading_progress(source),
                before_writing=lambda: _check_unchanged(source, reopen),
            )
        self.save()
        images_of = source.source if isinstance(source, MappedSource) else source
        of_images = settings if image_settings is None else image_settings
        # A mapping changes neither the episodes nor how many steps they have, so the shards have the same ones.
        image_key = _key(_VERSION, images_of.fingerprint(), of_images, str(skip_bad))
        return StoredDataset(source, table, key, image_key, reopen, opened_ns)

    def encode(
        self,
        dataset: StoredDataset,
        episodes: EpisodeList,
        camera: str,
        encoder: FrameEncoder,
        *,
        first_id: int,
        variant: Variant | None = None,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Encode what is missing of a camera: of the shards first this rank's share, then what nobody is working on.

        When it returns, everything is there, unless the file system has no locks: then wait for the other ranks.

        Args:
            first_id: the token id of code 0.
            variant: in which the frames are changed before they are encoded.

        Raises:
            DataError: frames cannot be read, the dataset changes meanwhile, or the store cannot be written.
        """
        shards = self.shards(dataset, camera, encoder, first_id=first_id, variant=variant)
        missing = shards.missing(episodes)
        done, total = 0, sum(shards.steps(shard, episodes) for shard in missing)

        def count(frames: int) -> None:
            nonlocal done
            done += frames
            if progress is not None:
                progress(done, total)

        def encode(shard: int, *, wait: bool) -> bool:
            """Whether the shard is there now."""
            with exclusively(shards.file(shard).with_suffix(".lock"), wait=wait) as is_alone:
                is_ours = is_alone or (is_alone is None and _is_share(shard, rank, world_size))
                if is_ours:
                    shards.encode(shard, episodes, progress=count, before_writing=dataset.check_unchanged)
                return is_ours or is_alone is None

        own_first = sorted(missing, key=lambda shard: not _is_share(shard, rank, world_size))
        busy = [shard for shard in own_first if not encode(shard, wait=False)]
        for shard in busy:
            encode(shard, wait=True)
        if missing:
            dataset.check_unchanged()
        self.save()

    def codes(
        self,
        dataset: StoredDataset,
        episodes: EpisodeList,
        camera: str,
        encoder: FrameEncoder,
        *,
        first_id: int,
        variant: Variant | None = None,
    ) -> ImageCodes:
        """The codes of a camera, of which those that are missing are encoded now.

        Raises:
            DataError: as ``encode``.
        """
        shards = self.shards(dataset, camera, encoder, first_id=first_id, variant=variant)
        found = shards.open(episodes)
        if found is None:
            self.encode(dataset, episodes, camera, encoder, first_id=first_id, variant=variant)
            found = shards.open(episodes)
            if found is None:
                raise DataError(f"{shards.folder}: damaged right after it was written; check the disk")
        self.save()
        return found

    def shards(
        self,
        dataset: StoredDataset,
        camera: str,
        encoder: FrameEncoder,
        *,
        first_id: int,
        variant: Variant | None = None,
    ) -> CodeShards:
        """The files of a camera's codes."""
        changed, stored = [] if variant is None else [variant.fingerprint()], dataset.image_camera(camera)
        if variant is not None and stored != camera:
            changed.append(camera)  # by which it is drawn how images are changed
        folder = self.folder / "codes" / _key(dataset.image_key, stored, encoder.fingerprint(), str(first_id), *changed)
        return CodeShards(folder, dataset.source, dataset.table, camera, encoder, first_id, self._memory, variant)

    def save(self) -> None:
        """Tell other processes which files have been compared with their checksums."""
        self._memory.save()

    def folder_of(self, key: str, name: str) -> Path:
        """A folder for something of this name that belongs to datasets with this key."""
        return self.folder / "episodes" / key / _key(name)

    def remembered(self, key: str, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of this name that belongs to datasets with this key, computed at the first time.

        Args:
            key: of a dataset, or of several.
            name: what it is, and of what; it is computed anew under another name.
        """
        file = self.folder_of(key, name).with_suffix(".json")
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["sha256"] == _key(name, json.dumps(stored["value"])):
                return stored["value"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged, which is made anew
            pass
        value = json.loads(json.dumps(compute()))
        with suppress(OSError):  # then it is computed the next time, too
            write_json(file, {"name": name, "value": value, "sha256": _key(name, json.dumps(value))})
        return value


def _check_unchanged(source: EpisodeSource, reopen: Callable[[], EpisodeSource] | None) -> None:
    now = source if reopen is None else reopen()
    if now.fingerprint() == source.fingerprint():
        return
    changed = ""
    if isinstance(now, KnowsFiles) and isinstance(source, KnowsFiles):
        before, after = source.file_digests(), now.file_digests()
        changed = next((f" ({name})" for name in {**before, **after} if before.get(name) != after.get(name)), "")
    raise _changed(source, changed)


def _changed(source: EpisodeSource, what: str) -> DataError:
    return DataError(f"{source.name}: changed while it was read{what}; start again once nobody writes to it")


def _is_share(shard: int, rank: int, world_size: int) -> bool:
    return shard % world_size == rank


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

"""An experiment with its data open, from which run, resume, evaluate and the benchmarks build the rest."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vlatrack.builders.data import (
    Split,
    build_norm_stats,
    check_data,
    data_fingerprints,
    deltas_of,
    normalisation_of,
    open_splits,
)
from vlatrack.builders.policy import StoredPolicy, adapter_of, backbone_factory, build_policy
from vlatrack.builders.rows import ROWS, open_rows, row_fingerprints, row_sources
from vlatrack.builders.unfilled import Fill, build_unfilled_policy
from vlatrack.data.augmentation import Augmentation, Variant
from vlatrack.data.digests import user_cache
from vlatrack.data.episodes import Episode, EpisodeSource, frame_pieces
from vlatrack.data.range_costs import TokenCosts
from vlatrack.data.recorded import ImageSizes, image_sizes
from vlatrack.data.row_samples import RowSamples
from vlatrack.data.samples import Encoding, SampleKind, SampleSet, check_lengths
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.image_codes import CodeShards, ImageCodes
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.data.streamed_frames import SHOWINGS, StreamedFrames
from vlatrack.data.streaming import StreamedSamples
from vlatrack.errors import DataError
from vlatrack.metrics.schema import SPLITS, TRAIN
from vlatrack.models.backbones.base import BackboneSource
from vlatrack.models.backbones.pretrained import open_pretrained, pretrained_fingerprint
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import canonical_hash
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.images import ImageTokenizer, resized
from vlatrack.tokens.layout import CHAMELEON_PREFIX, TokenLayout
from vlatrack.tokens.text import ByteTokenizer
from vlatrack.tracking.privacy import shareable_files
from vlatrack.training.checkpoint.contents import load_weights
from vlatrack.training.process_group import ProcessGroup

_FIT_EPISODES = 64  # from which the frames for the codebook are drawn

EncodeProgress = Callable[[str, int, int], None]  # splits, frames done, frames in total


@dataclass(frozen=True)
class Experiment:
    """A spec with its data open and its normalisation known, from which everything else is built."""

    spec: ExperimentSpec
    splits: Mapping[str, Split]
    norm_stats: NormStats
    source: BackboneSource
    stored: StoredPolicy | None  # the policy whose weights and image tokenizer it starts from
    continues: bool  # whether it is the experiment of `stored`, not a new one initialised from it
    fingerprints: Mapping[str, str]
    store: TokenStore

    @classmethod
    def new(
        cls, spec: ExperimentSpec, init_from: StoredPolicy | None = None, *, store: TokenStore | None = None
    ) -> "Experiment":
        """A new experiment: with random or pretrained weights, or with those of ``init_from``.

        Args:
            store: where what is computed from the data is kept; None: in the user's cache.

        Raises:
            VlatrackError: the data is missing or does not fit, or the pretrained folder is not available.
        """
        store = store or TokenStore(user_cache() / "data")
        splits = open_splits(spec, store)
        norm_stats = build_norm_stats(spec, splits.get(TRAIN))
        check_data(spec, splits, norm_stats)
        source = backbone_factory(spec).open() if init_from is None else init_from.source(spec)
        fingerprints = data_fingerprints(splits) | row_fingerprints(spec, store)
        if init_from is not None:
            fingerprints["init_from"] = init_from.record.policy_sha256
        elif source.weights is not None:
            fingerprints["backbone.checkpoint"] = pretrained_fingerprint(source.weights.folder.path)
        return cls(spec, splits, norm_stats, source, init_from, False, fingerprints, store)

    @classmethod
    def of(
        cls,
        stored: StoredPolicy,
        spec: ExperimentSpec,
        splits: Collection[str] = SPLITS,
        *,
        store: TokenStore | None = None,
    ) -> "Experiment":
        """The experiment of a checkpoint, with its normalisation and tokenizers, to be resumed or evaluated.

        Args:
            splits: the splits to open.
            store: as of ``new``.

        Raises:
            VlatrackError: the data of these splits is missing or does not fit.
        """
        store = store or TokenStore(user_cache() / "data")
        opened = open_splits(spec, store, splits)
        check_data(spec, opened, stored.record.norm_stats)
        inherited = {k: v for k, v in stored.record.fingerprints.items() if not k.startswith("data.")}
        fingerprints = data_fingerprints(opened) | row_fingerprints(spec, store, splits) | inherited
        return cls(spec, opened, stored.record.norm_stats, stored.source(spec), stored, True, fingerprints, store)

    @property
    def hash(self) -> str:
        """See ``canonical_hash``."""
        return canonical_hash(self.spec, self.fingerprints)

    @property
    def lineage(self) -> tuple[Mapping[str, str], ...]:
        """The policies that the weights were initialised from, oldest first."""
        if self.stored is None:
            return ()
        record = self.stored.record
        if self.continues:
            return record.lineage
        return (*record.lineage, {"checkpoint": str(record.checkpoint), "policy_sha256": record.policy_sha256})

    @cached_property
    def token_costs(self) -> TokenCosts | None:
        """What rounding and clipping cost on the training episodes; None where the training has none."""
        if TRAIN not in self.splits:
            return None
        with shareable_files():
            return normalisation_of(self.spec, self.splits[TRAIN], self.norm_stats).costs

    def image_sizes(self) -> ImageSizes:
        """Those of the training data, which the policy has got from its checkpoint, or which are looked up.

        Raises:
            DataError: images have to be read for that, and cannot be.
        """
        if self.stored is not None and self.continues and self.stored.record.image_sizes:
            return self.stored.record.image_sizes
        if TRAIN not in self.splits:  # finished token rows do not tell
            return {}
        train = self.splits[TRAIN]
        return image_sizes(train.source, train.episodes[0], self.spec.data.cameras)

    def policy(self, device: torch.device, *, with_weights: bool = True) -> VlaPolicy:
        """The policy on ``device``, with the stored weights, the pretrained ones, or random ones from the seed.

        Args:
            with_weights: false leaves out the stored weights, where a resume restores them anyway.

        Raises:
            CheckpointError: the weights are damaged, or of another geometry.
        """
        if self.stored is None or not with_weights:
            return build_policy(self.spec, self.source).to(device)
        load = partial(load_weights, self.stored.record.checkpoint)
        if adapter_of(self.stored.spec) is None:  # while this experiment may add one
            return build_policy(self.spec, self.source, initialise=load).to(device)
        policy = build_policy(self.spec, self.source)
        load(policy)
        return policy.to(device)

    def unfilled_policy(self, *, with_weights: bool = True) -> tuple[VlaPolicy, Fill] | None:
        """The same policy without its weights in memory, and what reads those that this process will hold; None where
        they are random, or the backbone is a custom one.

        Args:
            with_weights: false where a resume restores them.

        Raises:
            CheckpointError: the weights are damaged, or of another geometry.
        """
        if (self.stored is None and self.source.weights is None) or self.spec.backbone.kind == "custom":
            return None
        return build_unfilled_policy(self.spec, self.source, self.stored if with_weights else None)

    def encoding(self, layout: TokenLayout, folder: Path, device: torch.device) -> Encoding:
        """How samples become tokens.

        Args:
            layout: the token ids of the backbone.
            folder: of the run's image tokenizer, which is written there if it does not exist.
            device: where images are encoded.

        Raises:
            CheckpointError: the image tokenizer cannot be read or written.
        """
        spec = self.spec
        return Encoding(
            layout=layout,
            bins=Bins(spec.tokenizer.bins),
            action_range=self.norm_stats.actions,
            state_range=self.norm_stats.states,
            text=self.source.text or ByteTokenizer(layout),
            images=self._image_tokenizer(layout, folder, device),
            cameras=spec.data.cameras,
            history=spec.data.moments,
            horizon=spec.action_head.time_horizon,
            max_length=spec.backbone.max_seq_len,
            repeats_start=spec.data.history_start == "repeat",
            world_history=spec.data.world_history,
            deltas=deltas_of(spec),
        )

    def _image_tokenizer(self, layout: TokenLayout, folder: Path, device: torch.device) -> ImageTokenizer:
        """The one in ``folder``; if there is none, the stored policy's, a pretrained one, or one fitted to the data.

        It is saved to ``folder``, from where checkpoints link it, with a decoder if images are to be predicted.
        """
        if ImageTokenizer.is_saved(folder):
            return ImageTokenizer.load(folder).to(device)
        settings, checkpoint = self.spec.tokenizer.image, self.spec.tokenizer.checkpoint
        if self.stored is not None:
            tokenizer = ImageTokenizer.load(self.stored.record.image_tokenizer)
        elif (pretrained := self.source.images if checkpoint is None else open_pretrained(checkpoint)) is not None:
            tokenizer = ImageTokenizer.from_chameleon(
                pretrained.config,
                pretrained.tensors(CHAMELEON_PREFIX),
                place=pretrained.path,
                image_size=settings.image_size,
                layout=layout,
            )
        else:
            with shareable_files():
                tokenizer = self._fitted_tokenizer(layout)
        tokenizer.to(device)
        if tokenizer.decoder is None and "world_model" in self.spec.data.samples and TRAIN in self.splits:
            tokenizer.fit_decoder(self._frames_to_fit())
        tokenizer.save(folder)
        return tokenizer

    def _fitted_tokenizer(self, layout: TokenLayout) -> ImageTokenizer:
        """Fitted to the training data, or by an earlier run with the same settings to the same data.

        It is kept since another machine may fit another one, to which nothing that is encoded would belong.
        """
        settings, train, cameras = self.spec.tokenizer.image, self.splits[TRAIN], self.spec.data.cameras
        stored_cameras = [tuple(map(dataset.image_camera, cameras)) for dataset, _ in train.parts]
        looked_through = cameras if set(stored_cameras) == {cameras} else stored_cameras
        name = f"image tokenizer {(settings.model_dump_json(), self.spec.seed, layout, looked_through)}"
        folder = self.store.folder_of(train.image_key, name)

        def fit() -> str:
            fitted = ImageTokenizer.fit(
                self._frames_to_fit(),
                image_size=settings.image_size,
                codebook_size=settings.codebook_size,
                encoder=settings.encoder,
                base_channels=settings.base_channels,
                seed=self.spec.seed,
                layout=layout,
            )
            fitted.save(folder)
            return fitted.fingerprint()

        expected = self.store.remembered(train.image_key, name, fit)
        if ImageTokenizer.is_saved(folder) and (stored := ImageTokenizer.load(folder)).fingerprint() == expected:
            return stored
        fit()  # it has been damaged, or removed
        return ImageTokenizer.load(folder)

    def _frames_to_fit(self) -> NDArray[np.uint8]:
        """Training frames, evenly spread over episodes, cameras and time."""
        train, cameras = self.splits[TRAIN], self.spec.data.cameras
        chosen = np.linspace(0, len(train.episodes) - 1, min(_FIT_EPISODES, len(train.episodes))).round().astype(int)
        per_video = max(1, self.spec.tokenizer.image.fit_frames // (len(chosen) * len(cameras)))
        parts = []
        for number in chosen:
            for camera in cameras:
                episode = train.episodes[number]
                count = min(per_video, episode.length)
                steps = np.linspace(0, episode.length - 1, count).round().astype(int)
                parts.append(_frames_at(train.source, episode, camera, steps))
        if len({part.shape[1:] for part in parts}) > 1:  # of cameras, or of datasets of a mixture
            parts = [resized(part, self.spec.tokenizer.image.image_size) for part in parts]
        return np.concatenate(parts)

    def samples(
        self,
        encoding: Encoding,
        progress: EncodeProgress | None = None,
        *,
        group: ProcessGroup | None = None,
    ) -> dict[str, SampleSet]:
        """The samples of each split; validation splits have VLA samples only, as in the reference.

        Nothing is encoded where images are streamed.

        Args:
            progress: told of the frames that this process encodes.
            group: the ranks that all call this, each of which encodes its share of what is not in the store.

        Raises:
            DataError: frames cannot be read, or there is no training sample.
        """
        group = group or ProcessGroup()
        self.encode_frames(encoding, progress, rank=group.rank, world_size=group.world_size)
        group.all_gather(None)  # no rank reads before all have written
        build = self._streamed_samples if self.streams else self._stored_samples
        samples = {name: build(name, split, encoding) for name, split in self.splits.items()}
        if TRAIN in samples and len(samples[TRAIN]) == 0:
            raise DataError(
                f"{self.splits[TRAIN].source.name}: no episode is long enough for a sample, so nothing could be trained"
            )
        return samples

    @property
    def streams(self) -> bool:
        """Whether images are read and encoded while the policy trains, instead of once before."""
        return self.spec.data.images == "stream"

    @property
    def variants(self) -> int:
        """How many there are of each training sample, beside the original."""
        if self.streams:
            return 0 if self.spec.data.augmentation is None else SHOWINGS
        return len(self._variants())

    def _streamed_samples(self, name: str, split: Split, encoding: Encoding) -> SampleSet:
        augmentation = self._augmentation if name == TRAIN else None
        frames = StreamedFrames(split.parts, augmentation=augmentation, seed=self.spec.seed)
        frames.check_files(encoding.cameras)
        return StreamedSamples(
            split.episodes,
            frames,
            encoding,
            self._kinds(name),
            every=self._every(name),
            variants=self.variants if name == TRAIN else 0,
            delta_steps=split.delta_steps,
        )

    def _stored_samples(self, name: str, split: Split, encoding: Encoding) -> SampleSet:
        variants: list[Variant | None] = [None, *(self._variants() if name == TRAIN else [])]
        return SampleSet(
            split.episodes,
            [self._codes(split, encoding, camera, variants) for camera in encoding.cameras],
            encoding,
            self._kinds(name),
            every=self._every(name),
            variants=len(variants) - 1,
            delta_steps=split.delta_steps,
        )

    def _codes(self, split: Split, encoding: Encoding, camera: str, variants: Sequence[Variant | None]) -> ImageCodes:
        """The codes of a camera, of all episodes in one variant after another."""
        first_id = encoding.layout.first_image_code
        return ImageCodes.joined(
            [
                self.store.codes(dataset, episodes, camera, encoding.images, first_id=first_id, variant=variant)
                for variant in variants
                for dataset, episodes in split.parts
            ]
        )

    def row_samples(self, layout: TokenLayout, vocabulary: int) -> dict[str, RowSamples]:
        """The samples of each split that has finished token rows.

        Args:
            layout, vocabulary: the ids of the backbone.

        Raises:
            DataError: a record cannot be read, or does not fit the experiment.
        """
        samples = {}
        for name, source in row_sources(self.spec).items():
            folder = self.store.folder / ROWS
            rows, _ = open_rows(source, self.spec, layout=layout, vocabulary=vocabulary, folder=folder)
            samples[name] = RowSamples(rows, layout)
        return samples

    def encode_frames(
        self, encoding: Encoding, progress: EncodeProgress | None = None, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Encode the frames of all splits that are not in the store yet: this rank's share, and what nobody is at.

        Args:
            progress: told of the frames that this process encodes.

        Raises:
            DataError: frames cannot be read, or the store cannot be written.
            TokenError: samples would be longer than the backbone accepts.
        """
        for name, split in self.splits.items():
            check_lengths(split.episodes, encoding, self._kinds(name))
        for code_set in self._code_sets(encoding.cameras):
            self.store.encode(
                code_set.dataset,
                code_set.episodes,
                code_set.camera,
                encoding.images,
                first_id=encoding.layout.first_image_code,
                variant=code_set.variant,
                rank=rank,
                world_size=world_size,
                progress=None if progress is None else partial(progress, code_set.name),
            )

    def missing_shards(self, encoding: Encoding) -> list[tuple[int, int, int]]:
        """What is not in the store yet: the number of a set of codes, the number of a shard, and its frames."""
        found = []
        for number, code_set in enumerate(self._code_sets(encoding.cameras)):
            shards = self._shards(code_set, encoding)
            missing = shards.missing(code_set.episodes)
            found += [(number, shard, shards.steps(shard, code_set.episodes)) for shard in missing]
        self.store.save()
        return found

    def encode_shard(self, encoding: Encoding, number: int, shard: int) -> None:
        """Encode one that `missing_shards` has named, by the numbers of its set and of itself."""
        code_set = self._code_sets(encoding.cameras)[number]
        shards = self._shards(code_set, encoding)
        shards.encode(shard, code_set.episodes, before_writing=code_set.dataset.check_unchanged)

    def _shards(self, code_set: "_CodeSet", encoding: Encoding) -> CodeShards:
        return self.store.shards(
            code_set.dataset,
            code_set.camera,
            encoding.images,
            first_id=encoding.layout.first_image_code,
            variant=code_set.variant,
        )

    def _code_sets(self, cameras: Sequence[str]) -> list["_CodeSet"]:
        """All image codes that the splits need of the store, those that several need once."""
        if self.streams:
            return []
        used: dict[tuple[str, ...], tuple[StoredDataset, list[tuple[str, EpisodeList]]]] = {}
        for name, split in self.splits.items():
            for dataset, episodes in split.parts:
                stored = (dataset.image_key, *map(dataset.image_camera, cameras))
                used.setdefault(stored, (dataset, []))[1].append((name, episodes))
        sets = []
        for dataset, lists in used.values():
            names = ", ".join(dict.fromkeys(name for name, _ in lists))
            positions = np.unique(np.concatenate([episodes.positions for _, episodes in lists]))
            episodes = EpisodeList(dataset.table, positions)
            sets += [_CodeSet(names, dataset, episodes, camera, None) for camera in cameras]
        train = () if TRAIN not in self.splits else self.splits[TRAIN].parts
        return sets + [
            _CodeSet(f"{TRAIN}, variant {variant.number}", dataset, episodes, camera, variant)
            for variant in self._variants()
            for dataset, episodes in train
            for camera in cameras
        ]

    def _variants(self) -> list[Variant]:
        """Of the training images in the store, beside the originals."""
        wanted, augmentation = self.spec.data.augmentation, self._augmentation
        if wanted is None or wanted.variants is None or augmentation is None:
            return []
        return [Variant(augmentation, self.spec.seed, number) for number in range(1, wanted.variants + 1)]

    @property
    def _augmentation(self) -> Augmentation | None:
        wanted = self.spec.data.augmentation
        return None if wanted is None else Augmentation(**wanted.model_dump(exclude={"variants"}))

    def _every(self, split: str) -> int:
        return self.spec.data.sample_every if split == TRAIN else 1

    def _kinds(self, split: str) -> tuple[SampleKind, ...]:
        return self.spec.data.samples if split == TRAIN else ("vla",)


@dataclass(frozen=True)
class _CodeSet:
    """Image codes of one camera, of episodes of one dataset."""

    name: str  # for people
    dataset: StoredDataset
    episodes: EpisodeList
    camera: str
    variant: Variant | None


def _frames_at(source: EpisodeSource, episode: Episode, camera: str, steps: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The frames of some steps in rising order, with one piece of the episode in memory at a time."""
    found, first = [], 0
    for piece in frame_pieces(source, episode, camera):
        found.append(piece[steps[(steps >= first) & (steps < first + len(piece))] - first])
        first += len(piece)
    return np.concatenate(found)

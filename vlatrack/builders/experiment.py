"""An experiment with its data open: what run, resume, evaluate and the benchmarks are built from."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vlatrack.builders.data import SPLITS, Split, build_norm_stats, check_data, data_fingerprints, open_splits
from vlatrack.builders.policy import StoredPolicy, backbone_factory, build_policy, build_schema
from vlatrack.data.cache import CodeCache
from vlatrack.data.samples import Encoding, SampleKind, SampleSet, check_lengths, encode_episodes
from vlatrack.data.statistics import NormStats
from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.schema import TRAIN
from vlatrack.models.backbones.base import BackboneSource
from vlatrack.models.backbones.pretrained import open_pretrained, pretrained_fingerprint
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.identity import canonical_hash
from vlatrack.spec.load import dump_spec
from vlatrack.spec.models import (
    ExperimentSpec,
)
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.images import CHAMELEON_PREFIX, ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import TrainingParts, load_weights
from vlatrack.training.checkpoint.policy import (
    IMAGE_TOKENIZER,
    SPEC,
    TEXT_TOKENIZER,
    PolicyRecord,
)
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import LoopSettings, Training
from vlatrack.training.optimisation import Schedule, adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState

_FIT_EPISODES = 64  # episodes that the frames for a codebook are drawn from

FrameProgress = Callable[[str, int, int], None]  # what is encoded, frames done, frames in all


@dataclass(frozen=True)
class Experiment:
    """A spec with its data open, from which everything else is built."""

    spec: ExperimentSpec
    splits: Mapping[str, Split]
    norm_stats: NormStats
    source: BackboneSource
    stored: StoredPolicy | None  # whose weights and image tokenizer it starts with
    continues: bool  # ... as the same run, not as a new one
    fingerprints: Mapping[str, str]

    @classmethod
    def new(cls, spec: ExperimentSpec, init_from: StoredPolicy | None = None) -> "Experiment":
        """An experiment that begins: random weights, pretrained ones, or those of another run.

        Raises:
            VlatrackError: the data is missing or does not fit, or the pretrained weights cannot be had.
        """
        splits = open_splits(spec)
        norm_stats = build_norm_stats(spec, splits[TRAIN])
        check_data(spec, splits, norm_stats)
        source = backbone_factory(spec).open() if init_from is None else init_from.source(spec)
        fingerprints = data_fingerprints(splits)
        if init_from is not None:
            fingerprints["init_from"] = init_from.record.policy_sha256
        elif source.weights is not None:
            fingerprints["backbone.checkpoint"] = pretrained_fingerprint(source.weights.folder.path)
        return cls(spec, splits, norm_stats, source, init_from, False, fingerprints)

    @classmethod
    def of(cls, stored: StoredPolicy, spec: ExperimentSpec, splits: Collection[str] = SPLITS) -> "Experiment":
        """An experiment that goes on, or is evaluated: with the normalisation and tokenizers of its checkpoint.

        Raises:
            VlatrackError: the data of these splits is missing or does not fit.
        """
        opened = open_splits(spec, splits)
        check_data(spec, opened, stored.record.norm_stats)
        inherited = {k: v for k, v in stored.record.fingerprints.items() if not k.startswith("data.")}
        fingerprints = data_fingerprints(opened) | inherited
        return cls(spec, opened, stored.record.norm_stats, stored.source(spec), stored, True, fingerprints)

    @property
    def hash(self) -> str:
        """See ``canonical_hash``."""
        return canonical_hash(self.spec, self.fingerprints)

    @property
    def lineage(self) -> tuple[Mapping[str, str], ...]:
        """The policies that the weights come from, the oldest first."""
        if self.stored is None:
            return ()
        record = self.stored.record
        if self.continues:
            return record.lineage
        return (*record.lineage, {"checkpoint": str(record.checkpoint), "policy_sha256": record.policy_sha256})

    def policy(self, device: torch.device, *, with_weights: bool = True) -> VlaPolicy:
        """The policy on ``device``: random from the seed, then with the pretrained or the stored weights.

        Raises:
            CheckpointError: the weights are damaged, or of another geometry.
        """
        policy = build_policy(self.spec, self.source)
        if self.stored is not None and with_weights:
            load_weights(self.stored.record.checkpoint, policy)
        return policy.to(device)

    def encoding(self, layout: TokenLayout, folder: Path, device: torch.device) -> Encoding:
        """How samples become tokens. ``folder`` gets, or has, the run's image tokenizer, which works on ``device``."""
        spec = self.spec
        return Encoding(
            layout=layout,
            bins=Bins(spec.tokenizer.bins),
            action_range=self.norm_stats.actions,
            state_range=self.norm_stats.states,
            text=self.source.text or ByteTokenizer(layout),
            images=self._image_tokenizer(layout, folder).to(device),
            cameras=spec.data.cameras,
            history=spec.data.history,
            horizon=spec.action_head.time_horizon,
            max_length=spec.backbone.max_seq_len,
        )

    def _image_tokenizer(self, layout: TokenLayout, folder: Path) -> ImageTokenizer:
        """The one in ``folder`` if there is one, else the stored policy's, a pretrained one, or one fitted to the data.

        It is then in ``folder``, from where checkpoints take it.
        """
        if ImageTokenizer.is_saved(folder):
            return ImageTokenizer.load(folder)
        settings, other = self.spec.tokenizer.image, self.spec.tokenizer.checkpoint
        if self.stored is not None:
            tokenizer = ImageTokenizer.load(self.stored.record.image_tokenizer)
        elif (pretrained := self.source.images if other is None else open_pretrained(other)) is not None:
            tokenizer = ImageTokenizer.from_chameleon(
                pretrained.config,
                pretrained.tensors(CHAMELEON_PREFIX),
                place=pretrained.path,
                image_size=settings.image_size,
                layout=layout,
            )
        else:
            tokenizer = ImageTokenizer.fit(
                self._frames_to_fit(),
                image_size=settings.image_size,
                codebook_size=settings.codebook_size,
                base_channels=settings.base_channels,
                seed=self.spec.seed,
                layout=layout,
            )
        tokenizer.save(folder)
        return tokenizer

    def _frames_to_fit(self) -> NDArray[np.uint8]:
        """Training frames, evenly spread over episodes, cameras and time."""
        train, cameras = self.splits[TRAIN], self.spec.data.cameras
        chosen = np.linspace(0, len(train.episodes) - 1, min(_FIT_EPISODES, len(train.episodes))).round().astype(int)
        share = max(1, self.spec.tokenizer.image.fit_frames // (len(chosen) * len(cameras)))
        parts = []
        for number in chosen:
            for camera in cameras:
                frames = train.source.frames(train.episodes[number], camera)
                parts.append(frames[np.linspace(0, len(frames) - 1, min(share, len(frames))).round().astype(int)])
        return np.concatenate(parts)

    def samples(
        self, encoding: Encoding, cache: CodeCache, progress: FrameProgress | None = None
    ) -> dict[str, SampleSet]:
        """The samples of each split; the validation splits hold VLA samples, as the reference's do.

        Raises:
            DataError: there is no training sample.
        """
        data = self.spec.data
        kinds: dict[str, tuple[SampleKind, ...]] = {
            name: data.samples if name == TRAIN else ("vla",) for name in self.splits
        }
        for name, split in self.splits.items():
            check_lengths(split.episodes, encoding, kinds[name])
        samples = {}
        for name, split in self.splits.items():
            report = None if progress is None else partial(progress, name)
            episodes = encode_episodes(split.source, split.episodes, encoding, cache, report)
            samples[name] = SampleSet(episodes, encoding, kinds[name], every=data.sample_every if name == TRAIN else 1)
        if TRAIN in samples and len(samples[TRAIN]) == 0:
            raise DataError(
                f"{self.splits[TRAIN].source.name}: no episode is long enough for a sample, so nothing could be trained"
            )
        return samples

    def training(
        self,
        policy: VlaPolicy,
        samples: SampleSet,
        accelerator: Accelerator,
        group: ProcessGroup,
        interruption: Interruption,
        callbacks: Sequence[Callback] = (),
    ) -> Training:
        """Optimiser, schedule and loop around a policy."""
        optim, train = self.spec.optim, self.spec.train
        return Training(
            policy=policy,
            optimizer=adamw(policy, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps),
            schedule=Schedule(optim.lr, optim.min_lr, optim.warmup_epochs, train.epochs, optim.schedule),
            samples=samples,
            settings=LoopSettings(
                epochs=train.epochs,
                max_steps=train.max_steps,
                batch_size=train.batch_size,
                micro_batch=train.micro_batch,
                clip_grad=optim.clip_grad,
                log_every=self.spec.tracking.log_every,
                seed=self.spec.seed,
                workers=min(train.workers, os.cpu_count() or 1),  # more than cores only slow one another down
                non_finite=train.non_finite,
                max_rollbacks=train.max_rollbacks,
                save_every_epochs=train.checkpoint.every_epochs,
                save_every_steps=train.checkpoint.every_steps,
                best_metric=train.checkpoint.best_metric,
                gradient_share_every=self.spec.loss.gradient_share_every,
            ),
            accelerator=accelerator,
            group=group,
            interruption=interruption,
            schema=build_schema(self.spec),
            callbacks=callbacks,
        )

    def training_parts(self, training: Training, encoding: Encoding, image_tokenizer: Path) -> TrainingParts:
        """What checkpoints of a training hold; ``image_tokenizer`` is the folder that ``encoding`` left it in."""

        def write_policy_files(folder: Path) -> None:
            (folder / SPEC).write_text(dump_spec(self.spec))
            encoding.text.save(folder / TEXT_TOKENIZER)
            _link_files(image_tokenizer, folder / IMAGE_TOKENIZER)
            record = PolicyRecord(
                folder,
                spec_file=folder / SPEC,
                bins=self.spec.tokenizer.bins,
                norm_stats=self.norm_stats,
                geometry=training.policy.backbone.geometry(),
                fingerprints=self.fingerprints,
                lineage=self.lineage,
                text_tokenizer=folder / TEXT_TOKENIZER,
                image_tokenizer=folder / IMAGE_TOKENIZER,
                policy_sha256="",  # of files that are being written
            )
            record.write(folder, experiment_hash=self.hash, backbone_kind=self.spec.backbone.kind)

        return TrainingParts(training.policy, training.optimizer, training.group, write_policy_files)

    def warnings(self, training: Training, state: TrainState) -> list[str]:
        """What is allowed but probably not meant, one line each, for a training that goes on from ``state``."""
        spec, steps = self.spec, training.total_steps
        found = []
        if self.continues and self.stored is not None and spec.optim.schedule == "cosine":
            before = cast(int, self.stored.settings["train.epochs"])
            now, done = training.schedule, state.step / training.steps_per_epoch
            if before != spec.train.epochs:
                found.append(
                    f"train.epochs = {spec.train.epochs} spans the cosine anew, which spanned {before}: the learning "
                    f"rate goes on at {now.at(done):.3g} instead of {replace(now, epochs=before).at(done):.3g}"
                )
        whole = training.steps_per_epoch * spec.train.epochs
        warm_up = spec.optim.warmup_epochs * training.steps_per_epoch
        if steps <= warm_up:
            found.append(
                f"train.max_steps = {steps} ends the training inside the warm-up of {warm_up:.0f} steps: the learning "
                "rate never reaches optim.lr"
            )
        elif steps < whole and spec.optim.schedule == "cosine":
            last = training.schedule.at((steps - 1) / training.steps_per_epoch)
            found.append(
                f"train.max_steps = {steps} ends the training before the cosine, which spans the {whole} steps of "
                f"train.epochs = {spec.train.epochs}: the last learning rate is {last:.2g}, not {spec.optim.min_lr:.2g}"
            )
        best = spec.train.checkpoint.best_metric
        measured = [TRAIN, *(name for name in self.splits if name != TRAIN and spec.evaluate.open_loop is not None)]
        if not best.startswith(tuple(f"{name}_" for name in measured)):
            found.append(
                f"train.checkpoint.best_metric = {best} is never measured (data.val_… or evaluate.open_loop is null); "
                "the best checkpoint is the last one"
            )
        return found


def build_accelerator(spec: ExperimentSpec) -> Accelerator:
    """Device and precision.

    Raises:
        SpecError: train.device is cuda and there is none.
    """
    wanted = spec.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SpecError("train.device: cuda, but torch sees no GPU here; use auto or cpu")
    return Accelerator(cpu=wanted == "cpu", mixed_precision="bf16" if spec.train.precision == "bf16" else "no")


def check_processes(spec: ExperimentSpec, group: ProcessGroup) -> None:
    """Raise SpecError if there are more processes than samples to deal out, or than GPUs to compute on."""
    if spec.train.batch_size < group.world_size:
        raise SpecError(
            f"train.batch_size: {spec.train.batch_size} samples cannot be dealt out to {group.world_size} processes; "
            "raise it, or start fewer"
        )
    gpus = 0 if spec.train.device == "cpu" else torch.cuda.device_count()
    if 0 < gpus < group.local_world_size:
        raise SpecError(
            f"train.device: {spec.train.device}, but torch sees {gpus} GPUs for {group.local_world_size} processes; "
            "start one for each GPU, or use cpu"
        )


def _link_files(source: Path, target: Path) -> None:
    """The files of a folder under another name: without a copy where the file system can, for they never change."""
    target.mkdir()
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, target / file.name)

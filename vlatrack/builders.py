"""The only place where a spec becomes objects: one `Experiment` for run, resume, evaluate and the benchmarks."""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, assert_never, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vlatrack import __version__
from vlatrack.data.cache import CodeCache
from vlatrack.data.episodes import Episode, EpisodeSource, episodes_digest, select_episodes
from vlatrack.data.samples import Encoding, SampleKind, SampleSet, check_fit, check_lengths, encode_episodes
from vlatrack.data.statistics import NormStats, value_range
from vlatrack.errors import CheckpointError, DataError, SpecError
from vlatrack.metrics.losses import LossMetric
from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD, MetricSchema
from vlatrack.models.backbones.base import Backbone, BackboneFactory, BackboneSource
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory
from vlatrack.models.backbones.custom import custom_factory
from vlatrack.models.backbones.pretrained import open_pretrained, pretrained_fingerprint
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.base import LossTerm
from vlatrack.models.losses.terms import check_names, documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.identity import Scalar, canonical_hash, flatten
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.migrate import migrate_flat
from vlatrack.spec.models import (
    Backend,
    CausalLMSpec,
    ChameleonSpec,
    CustomBackboneSpec,
    CustomBackend,
    CustomLoss,
    CustomSource,
    ExperimentSpec,
    ExplicitRanges,
    LeRobotSource,
    LiberoSource,
    MlflowBackend,
    Source,
    TensorboardBackend,
    WandbBackend,
)
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.images import CHAMELEON_PREFIX, ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer, TextTokenizer, load_text_tokenizer
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import FORMAT, POLICY, TrainingParts, load_weights, read_manifest
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import LoopSettings, Training
from vlatrack.training.optimisation import Schedule, adamw
from vlatrack.training.process_group import ProcessGroup

SPLITS = (TRAIN, VAL_IND, VAL_OOD)
TEXT_TOKENIZER, IMAGE_TOKENIZER, SPEC = "text_tokenizer", "image_tokenizer", "spec.yaml"
_FIT_EPISODES = 64  # episodes that the frames for a codebook are drawn from

FrameProgress = Callable[[str, int, int], None]  # what is encoded, frames done, frames in all


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A dataset and the episodes of it that one split uses."""

    source: EpisodeSource
    episodes: list[Episode]


def open_splits(spec: ExperimentSpec, names: Collection[str] = SPLITS) -> dict[str, Split]:
    """Open the datasets and choose the episodes of each split; reads no frame.

    Raises:
        DataError: a dataset is missing, damaged, or lacks a task.
    """
    splits = {}
    for name in SPLITS:
        source_spec: Source | None = getattr(spec.data, name)
        if source_spec is None or name not in names:
            continue
        source = open_source(source_spec)
        episodes = select_episodes(
            source, tasks=source_spec.tasks, exclude_tasks=source_spec.exclude_tasks, part=source_spec.part
        )
        splits[name] = Split(source, episodes)
    return splits


def open_source(spec: Source) -> EpisodeSource:
    """The dataset that a source of the spec names."""
    match spec:
        case LeRobotSource():
            from vlatrack.data.formats.lerobot.dataset import LeRobotDataset

            return LeRobotDataset(Path(spec.path), action=spec.action, state=spec.state)
        case LiberoSource():
            from vlatrack.data.formats.libero import LiberoDataset

            return LiberoDataset(Path(spec.path), skip_no_ops=spec.skip_no_ops)
        case CustomSource():
            return cast(EpisodeSource, load_target(spec.target)(**spec.options))
        case _:
            assert_never(spec)


def load_target(target: str) -> Callable[..., object]:
    """The object that ``package.module:Name`` names.

    Raises:
        SpecError: there is no such module or name.
    """
    module, _, name = target.partition(":")
    try:
        return cast(Callable[..., object], getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise SpecError(f"target: {target} cannot be loaded ({error}); is its package installed?") from error


def build_norm_stats(spec: ExperimentSpec, train: Split) -> NormStats:
    """Ranges of actions and states as the spec gives them, or from the training episodes."""
    statistics = spec.tokenizer.statistics
    if isinstance(statistics, ExplicitRanges):
        states = ValueRange(statistics.state_low, statistics.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(statistics.action_low, statistics.action_high), states)
    actions = value_range([episode.actions for episode in train.episodes], statistics)
    if not spec.data.use_state:
        return NormStats(actions, None)
    return NormStats(actions, value_range([_state(episode, train) for episode in train.episodes], statistics))


def _state(episode: Episode, split: Split) -> NDArray[np.float32]:
    if episode.states is None:
        raise DataError(f"{split.source.name}: episode {episode.index} has no state; set data.use_state: false")
    return episode.states


def data_fingerprints(splits: Mapping[str, Split]) -> dict[str, str]:
    """Digests of the files of each split's dataset, and of the episodes that are used of it, in their order."""
    digests = {}
    for name, split in splits.items():
        indices = ",".join(str(episode.index) for episode in split.episodes)
        digests[f"data.{name}"] = split.source.fingerprint()
        digests[f"data.{name} (choice of episodes)"] = hashlib.sha256(indices.encode()).hexdigest()
        digests[f"data.{name} (episodes in their order)"] = episodes_digest(split.episodes)
    return digests


# --- policy --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredPolicy:
    """A policy in a checkpoint folder, as far as it is known before its weights are read."""

    checkpoint: Path
    spec: ExperimentSpec  # as it was when the checkpoint was made
    settings: Mapping[str, Scalar]  # the same, flat, with the keys that there were then
    norm_stats: NormStats
    fingerprints: Mapping[str, str]  # of the data and of pretrained weights
    source: Callable[[ExperimentSpec], BackboneSource]  # of the backbone, with the settings of that spec
    image_tokenizer: Path
    policy_sha256: str
    lineage: tuple[Mapping[str, str], ...]

    @classmethod
    def open(cls, checkpoint: Path, before: "Mapping[str, Scalar] | None" = None) -> "StoredPolicy":
        """The policy of a checkpoint that was checked.

        Args:
            before: the flat settings that its run began with; a checkpoint of format 1 has none of its own.

        Raises:
            CheckpointError: policy.json is damaged or missing.
            SpecError: its spec.yaml is.
        """
        manifest = read_manifest(checkpoint)
        if manifest.format == 1:
            return _open_format_1(checkpoint, before or {}, manifest.policy_sha256)
        try:
            stored = json.loads((checkpoint / POLICY).read_text())
            norm_stats = NormStats.from_json(stored["norm_stats"])
            geometry, fingerprints = stored["backbone"]["geometry"], dict(stored["fingerprints"])
            lineage = tuple(stored["lineage"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{checkpoint / POLICY}: not readable ({error})") from error
        spec = load_spec(checkpoint / SPEC, stored=True)

        def source(spec: ExperimentSpec) -> BackboneSource:
            build = partial(backbone_factory(spec).from_geometry, geometry)
            return BackboneSource(build=build, text=load_text_tokenizer(checkpoint / TEXT_TOKENIZER))

        return cls(
            checkpoint,
            spec,
            flatten(spec),
            norm_stats,
            fingerprints,
            source,
            checkpoint / IMAGE_TOKENIZER,
            manifest.policy_sha256,
            lineage,
        )


def _open_format_1(checkpoint: Path, before: Mapping[str, Scalar], policy_sha256: str) -> StoredPolicy:
    """What vlatrack 0.1.0 kept outside its checkpoints: the run's spec, image tokenizer and manifest."""
    run_dir = checkpoint.resolve().parent.parent
    spec = load_spec(run_dir / SPEC, stored=True)
    try:
        identity = json.loads((checkpoint / "state.json").read_text())["identity"]
        data = json.loads((run_dir / "manifest.json").read_text())["data"]
        actions = ValueRange(tuple(identity["action_low"]), tuple(identity["action_high"]))
        has_state = identity["state_low"] is not None
        states = ValueRange(tuple(identity["state_low"]), tuple(identity["state_high"])) if has_state else None
        fingerprints = {f"data.{name}": split["sha256"] for name, split in data.items()} | {
            f"data.{name} (choice of episodes)": hashlib.sha256(
                ",".join(map(str, split["episodes"])).encode()
            ).hexdigest()
            for name, split in data.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: not readable, or its run's manifest.json is not ({error})") from error

    def source(spec: ExperimentSpec) -> BackboneSource:
        fresh = backbone_factory(spec).open()
        return BackboneSource(build=fresh.build, text=fresh.text)

    settings = migrate_flat(before) if before else flatten(spec)
    settings["tokenizer.bins"] = identity["bins"]
    return StoredPolicy(
        checkpoint,
        spec,
        settings,
        NormStats(actions, states),
        fingerprints,
        source,
        run_dir / "tokenizer",
        policy_sha256,
        (),
    )


def backbone_factory(spec: ExperimentSpec) -> BackboneFactory:
    """The kind of backbone that the spec names."""
    backbone = spec.backbone
    match backbone:
        case ChameleonSpec():
            return ChameleonFactory(
                preset=backbone.preset,
                checkpoint=backbone.checkpoint,
                tokenizer=spec.tokenizer.checkpoint,
                residual_dropout=backbone.residual_dropout,
                max_seq_len=backbone.max_seq_len,
            )
        case CausalLMSpec():
            return CausalLMFactory(
                family=backbone.family,
                preset=backbone.preset,
                sizes=backbone.sizes.model_dump(exclude_none=True),
                checkpoint=backbone.checkpoint,
                residual_dropout=backbone.residual_dropout,
                max_seq_len=backbone.max_seq_len,
            )
        case CustomBackboneSpec():
            return custom_factory(load_target(backbone.target), backbone.options, max_seq_len=backbone.max_seq_len)
        case _:
            assert_never(backbone)


def build_losses(spec: ExperimentSpec, layout: TokenLayout) -> tuple[LossTerm, ...]:
    """The documented loss terms and those of the spec's own.

    Raises:
        VlatrackError: a term cannot be loaded, is no loss term, or has a name that is taken.
    """
    head, loss = spec.action_head, spec.loss
    documented = documented_terms(
        layout,
        (head.time_horizon, head.action_dim),
        loss_ct_weights=loss.loss_ct_weights,
        z_loss_weight=loss.z_loss_weight,
        image_token_weight=loss.image_token_weight,
        ct_target=loss.ct_target,
    )
    own = [_custom_loss(term, f"loss.terms.{number}") for number, term in enumerate(loss.terms)]
    check_names(own)
    return (*documented, *own)


def _custom_loss(spec: CustomLoss, place: str) -> LossTerm:
    try:
        term = load_target(spec.target)(weight=spec.weight, **spec.options)
    except TypeError as error:
        raise SpecError(f"{place}: {spec.target} does not take these options ({error})") from error
    if not isinstance(term, LossTerm):
        raise SpecError(f"{place}: {spec.target} is no vlatrack.models.losses.base.LossTerm; derive the class from it")
    if not isinstance(getattr(term, "metric", None), LossMetric):
        raise SpecError(f"{place}: {spec.target} lacks its name; give the class metric = LossMetric(name, meaning)")
    return term


def build_schema(spec: ExperimentSpec) -> MetricSchema:
    """Every metric that a run of the spec may log.

    Raises:
        VlatrackError: a loss term cannot be used, or `train.checkpoint.best_metric` cannot decide what is best.
    """
    head = spec.action_head
    schema = MetricSchema.for_experiment(
        horizon=head.time_horizon,
        action_dim=head.action_dim,
        losses={term.metric: term.weight for term in build_losses(spec, TokenLayout())},
    )
    if problem := schema.why_not_best(spec.train.checkpoint.best_metric):
        raise SpecError(f"train.checkpoint.best_metric: {problem}")
    return schema


# --- the experiment ------------------------------------------------------------------------------


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
            fingerprints["init_from"] = init_from.policy_sha256
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
        check_data(spec, opened, stored.norm_stats)
        inherited = {k: v for k, v in stored.fingerprints.items() if not k.startswith("data.")}
        fingerprints = data_fingerprints(opened) | inherited
        return cls(spec, opened, stored.norm_stats, stored.source(spec), stored, True, fingerprints)

    @property
    def hash(self) -> str:
        """See ``canonical_hash``."""
        return canonical_hash(self.spec, self.fingerprints)

    @property
    def lineage(self) -> tuple[Mapping[str, str], ...]:
        """The policies that the weights come from, the oldest first."""
        if self.stored is None:
            return ()
        if self.continues:
            return self.stored.lineage
        checkpoint = self.stored.checkpoint
        parent = {"checkpoint": str(checkpoint), "policy_sha256": self.stored.policy_sha256}
        return (*self.stored.lineage, parent)

    def policy(self, device: torch.device, *, with_weights: bool = True) -> VlaPolicy:
        """The policy on ``device``: random from the seed, then with the pretrained or the stored weights.

        Raises:
            CheckpointError: the weights are damaged, or of another geometry.
        """
        spec, head = self.spec, self.spec.action_head
        torch.manual_seed(spec.seed)
        backbone = self.source.build()
        _check_vocabulary(backbone, self.source.text or ByteTokenizer(backbone.layout))
        width = max(head.heads, round(backbone.width * head.reduced_ratio / head.heads) * head.heads)
        policy = VlaPolicy(
            backbone,
            ActionHead(
                backbone_width=backbone.width,
                time_horizon=head.time_horizon,
                action_dim=head.action_dim,
                reduced_width=width,
                encoder_layers=head.encoder_layers,
                heads=head.heads,
                dropout=head.dropout,
                mask_padding=head.mask_padding,
            ),
            layout=backbone.layout,
            bins=Bins(spec.tokenizer.bins),
            losses=build_losses(spec, backbone.layout),
        )
        if self.source.weights is not None:
            self.source.weights.copy_into(policy)
        if self.stored is not None and with_weights:
            load_weights(self.stored.checkpoint, policy)
        if spec.train.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
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
            tokenizer = ImageTokenizer.load(self.stored.image_tokenizer)
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
            description = {
                "format": FORMAT,
                "vlatrack": __version__,
                "hash": self.hash,
                "backbone": {
                    "kind": self.spec.backbone.kind,
                    "geometry": dict(training.policy.backbone.geometry()),
                },
                "bins": self.spec.tokenizer.bins,
                "norm_stats": self.norm_stats.to_json(),
                "fingerprints": dict(self.fingerprints),
                "lineage": [dict(parent) for parent in self.lineage],
            }
            (folder / POLICY).write_text(json.dumps(description, indent=1) + "\n")

        return TrainingParts(training.policy, training.optimizer, training.group, write_policy_files)

    def warnings(self, training: Training) -> list[str]:
        """What is allowed but probably not meant, one line each."""
        spec, steps = self.spec, training.total_steps
        found = []
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


def check_data(spec: ExperimentSpec, splits: Mapping[str, Split], norm_stats: NormStats) -> None:
    """Raise DataError where a split cannot serve the experiment, before anything slow begins."""
    for split in splits.values():
        check_fit(
            split.source,
            split.episodes,
            cameras=spec.data.cameras,
            action_dim=spec.action_head.action_dim,
            state_dim=None if norm_stats.states is None else norm_stats.states.dimensions,
            horizon=spec.action_head.time_horizon,
        )


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


def build_backends(backends: Sequence[Backend]) -> list[BackendConfig]:
    """The tracker backends as plain settings."""
    configs = []
    for backend in backends:
        target: str | None = None
        options: dict[str, Any] = {}
        match backend:
            case MlflowBackend() | WandbBackend() | TensorboardBackend():
                options = backend.model_dump(exclude={"kind", "naming"})
            case CustomBackend():
                target, options = backend.target, dict(backend.options)
            case _:
                assert_never(backend)
        configs.append(BackendConfig(kind=backend.kind, naming=backend.naming, options=options, target=target))
    return configs


def _check_vocabulary(backbone: Backbone, text: TextTokenizer) -> None:
    rows, needed = len(backbone.output_layer), max(backbone.layout.state_end + 1, text.vocabulary_size)
    if needed > rows:
        raise CheckpointError(
            f"backbone: its vocabulary has {rows} ids, but image, action, state and text ids go up to {needed - 1}; "
            "it needs a larger one, or another tokenizer"
        )


def _link_files(source: Path, target: Path) -> None:
    """The files of a folder under another name: without a copy where the file system can, for they never change."""
    target.mkdir()
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, target / file.name)

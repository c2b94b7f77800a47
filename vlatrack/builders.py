"""The only place where a spec becomes objects."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vlatrack.data.cache import CodeCache
from vlatrack.data.episodes import Episode, EpisodeSource, select_episodes
from vlatrack.data.samples import Encoding, SampleKind, SampleSet, check_fit, check_lengths, encode_episodes
from vlatrack.data.statistics import value_range
from vlatrack.errors import CheckpointError, DataError, SpecError
from vlatrack.metrics.schema import TRAIN, VAL_IND, VAL_OOD
from vlatrack.models.backbones.base import Backbone, BackboneFactory, BackboneSource, Geometry
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory
from vlatrack.models.backbones.custom import custom_factory
from vlatrack.models.backbones.pretrained import open_pretrained
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.sums import LossWeights
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.models import (
    Backend,
    CausalLMSpec,
    ChameleonSpec,
    CustomBackboneSpec,
    CustomBackend,
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
from vlatrack.tracking.backends.base import BackendConfig, Scalar
from vlatrack.training.checkpoint.files import Identity
from vlatrack.training.loop import LoopSettings, Training
from vlatrack.training.optimisation import Schedule, adamw
from vlatrack.training.ranks import Ranks

_FIT_EPISODES = 64  # episodes that the frames for a codebook are drawn from

FrameProgress = Callable[[str, int, int], None]  # what is encoded, frames done, frames in all


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A dataset and the episodes of it that one split uses."""

    source: EpisodeSource
    episodes: list[Episode]


@dataclass(frozen=True)
class Ranges:
    """Value ranges of the bins."""

    actions: ValueRange
    states: ValueRange | None


def open_splits(spec: ExperimentSpec) -> dict[str, Split]:
    """Open the datasets and choose the episodes of each split; reads no picture.

    Raises:
        DataError: a dataset is missing, damaged, or lacks a task.
    """
    splits = {}
    for name, source_spec in ((TRAIN, spec.data.train), (VAL_IND, spec.data.val_ind), (VAL_OOD, spec.data.val_ood)):
        if source_spec is None:
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


def value_ranges(spec: ExperimentSpec, train: Split) -> Ranges:
    """Bin ranges as the spec gives them, or from the training episodes."""
    statistics = spec.tokenizer.statistics
    if isinstance(statistics, ExplicitRanges):
        states = ValueRange(statistics.state_low, statistics.state_high) if spec.data.use_state else None
        return Ranges(ValueRange(statistics.action_low, statistics.action_high), states)
    actions = value_range([episode.actions for episode in train.episodes], statistics)
    if not spec.data.use_state:
        return Ranges(actions, None)
    return Ranges(actions, value_range([_state(episode, train) for episode in train.episodes], statistics))


def _state(episode: Episode, split: Split) -> NDArray[np.float32]:
    if episode.states is None:
        raise DataError(f"{split.source.name}: episode {episode.index} has no state; set data.use_state: false")
    return episode.states


# --- tokenizers ------------------------------------------------------------------------------------


def build_text_tokenizer(source: BackboneSource, layout: TokenLayout) -> TextTokenizer:
    """The one that comes with the backbone, else bytes."""
    return source.text or ByteTokenizer(layout)


def build_image_tokenizer(
    spec: ExperimentSpec, source: BackboneSource, layout: TokenLayout, train: Split, folder: Path
) -> ImageTokenizer:
    """The run's own tokenizer if ``folder`` has one, else a pretrained one, else one fitted to the data.

    What is made here is saved in ``folder``, so that a resumed run or an evaluation sees the same ids.
    """
    if ImageTokenizer.is_saved(folder):
        return ImageTokenizer.load(folder)
    settings, other = spec.tokenizer.image, spec.tokenizer.checkpoint
    pretrained = source.images if other is None else open_pretrained(other)
    if pretrained is not None:
        tokenizer = ImageTokenizer.from_chameleon(
            pretrained.config,
            pretrained.tensors(CHAMELEON_PREFIX),
            place=pretrained.path,
            image_size=settings.image_size,
            layout=layout,
        )
    else:
        tokenizer = ImageTokenizer.fit(
            _frames_to_fit(spec, train),
            image_size=settings.image_size,
            codebook_size=settings.codebook_size,
            base_channels=settings.base_channels,
            seed=spec.seed,
            layout=layout,
        )
    tokenizer.save(folder)
    return tokenizer


def _frames_to_fit(spec: ExperimentSpec, train: Split) -> NDArray[np.uint8]:
    """Training frames, evenly spread over episodes, cameras and time."""
    chosen = np.linspace(0, len(train.episodes) - 1, min(_FIT_EPISODES, len(train.episodes))).round().astype(int)
    share = max(1, spec.tokenizer.image.fit_frames // (len(chosen) * len(spec.data.cameras)))
    parts = []
    for number in chosen:
        for camera in spec.data.cameras:
            frames = train.source.frames(train.episodes[number], camera)
            parts.append(frames[np.linspace(0, len(frames) - 1, min(share, len(frames))).round().astype(int)])
    return np.concatenate(parts)


# --- model -----------------------------------------------------------------------------------------


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


def new_backbone(spec: ExperimentSpec) -> BackboneSource:
    """Where the backbone of a new policy comes from: a preset, or a pretrained folder, of which no weight is read yet.

    Raises:
        VlatrackError: the folder is missing, damaged or of another kind of model, or the settings make no model.
    """
    return backbone_factory(spec).open()


def stored_backbone(spec: ExperimentSpec, geometry: Geometry, tokenizer: Path) -> BackboneSource:
    """The same for a policy whose weights are stored: of the outside, nothing is needed.

    Args:
        geometry: what ``policy.backbone.geometry()`` was.
        tokenizer: folder into which its text tokenizer was saved.
    """
    build = partial(backbone_factory(spec).from_geometry, geometry)
    return BackboneSource(build=build, text=load_text_tokenizer(tokenizer))


def build_policy(spec: ExperimentSpec, source: BackboneSource) -> VlaPolicy:
    """The policy with its initial weights: random from the seed, or the pretrained ones.

    Raises:
        CheckpointError: the pretrained weights are damaged, or of another geometry.
    """
    torch.manual_seed(spec.seed)
    head, backbone = spec.action_head, source.build()
    _check_vocabulary(backbone, build_text_tokenizer(source, backbone.layout))
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
        weights=LossWeights(spec.loss.loss_ct_weights, spec.loss.z_loss_weight, spec.loss.image_token_weight),
        ct_target=spec.loss.ct_target,
    )
    if source.weights is not None:
        source.weights.copy_into(policy)
    if spec.train.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    return policy


def _check_vocabulary(backbone: Backbone, text: TextTokenizer) -> None:
    rows, needed = len(backbone.output_layer), max(backbone.layout.state_end + 1, text.vocabulary_size)
    if needed > rows:
        raise CheckpointError(
            f"backbone: its vocabulary has {rows} ids, but image, action, state and text ids go up to {needed - 1}; "
            "it needs a larger one, or another tokenizer"
        )


# --- the whole -------------------------------------------------------------------------------------


def build_encoding(
    spec: ExperimentSpec,
    splits: Mapping[str, Split],
    ranges: Ranges,
    source: BackboneSource,
    layout: TokenLayout,
    folder: Path,
    device: torch.device,
) -> Encoding:
    """How samples become tokens. ``folder`` keeps the run's image tokenizer, which works on ``device``."""
    return Encoding(
        layout=layout,
        bins=Bins(spec.tokenizer.bins),
        action_range=ranges.actions,
        state_range=ranges.states,
        text=build_text_tokenizer(source, layout),
        images=build_image_tokenizer(spec, source, layout, splits[TRAIN], folder).to(device),
        cameras=spec.data.cameras,
        history=spec.data.history,
        horizon=spec.action_head.time_horizon,
        max_length=spec.backbone.max_seq_len,
    )


def build_samples(
    spec: ExperimentSpec,
    splits: Mapping[str, Split],
    encoding: Encoding,
    cache: CodeCache,
    progress: FrameProgress | None = None,
) -> dict[str, SampleSet]:
    """The samples of each split; the validation splits hold VLA samples, as the reference's do."""
    kinds: dict[str, tuple[SampleKind, ...]] = {
        name: spec.data.samples if name == TRAIN else ("vla",) for name in splits
    }
    for name, split in splits.items():
        check_lengths(split.episodes, encoding, kinds[name])
    samples = {}
    for name, split in splits.items():
        report = None if progress is None else _named(progress, name)
        episodes = encode_episodes(split.source, split.episodes, encoding, cache, report)
        samples[name] = SampleSet(episodes, encoding, kinds[name], every=spec.data.sample_every if name == TRAIN else 1)
    return samples


def _named(progress: FrameProgress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def check_data(spec: ExperimentSpec, splits: Mapping[str, Split], ranges: Ranges) -> None:
    """Raise DataError where a split cannot serve the experiment, before anything slow begins."""
    for split in splits.values():
        check_fit(
            split.source,
            split.episodes,
            cameras=spec.data.cameras,
            action_dim=spec.action_head.action_dim,
            state_dim=None if ranges.states is None else ranges.states.dimensions,
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


def check_ranks(spec: ExperimentSpec, ranks: Ranks) -> None:
    """Raise SpecError if there are more processes than rows to deal out, or than GPUs to compute on."""
    if spec.train.batch_size < ranks.count:
        raise SpecError(
            f"train.batch_size: {spec.train.batch_size} samples cannot be dealt out to {ranks.count} processes; "
            "raise it, or start fewer"
        )
    gpus = 0 if spec.train.device == "cpu" else torch.cuda.device_count()
    if 0 < gpus < ranks.count_here:
        raise SpecError(
            f"train.device: {spec.train.device}, but torch sees {gpus} GPUs for {ranks.count_here} processes here; "
            "start one for each GPU, or use cpu"
        )


def build_training(
    spec: ExperimentSpec, policy: VlaPolicy, samples: SampleSet, accelerator: Accelerator, ranks: Ranks
) -> Training:
    """Optimiser, schedule and loop around a policy, which moves to the device."""
    policy.to(accelerator.device)
    optim, train = spec.optim, spec.train
    return Training(
        policy=policy,
        optimizer=adamw(policy, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps),
        schedule=Schedule(optim.lr, optim.min_lr, optim.warmup_epochs, train.epochs, optim.schedule),
        samples=samples,
        settings=LoopSettings(
            epochs=train.epochs,
            max_steps=train.max_steps,
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            clip_grad=optim.clip_grad,
            log_every=spec.tracking.log_every,
            seed=spec.seed,
            workers=min(train.workers, os.cpu_count() or 1),  # more than cores only slow one another down
        ),
        accelerator=accelerator,
        ranks=ranks,
    )


def build_identity(spec: ExperimentSpec, ranges: Ranges) -> Identity:
    return Identity.of(spec.tokenizer.bins, ranges.actions, ranges.states)


def build_backends(backends: Sequence[Backend]) -> list[BackendConfig]:
    """The tracker backends as plain settings."""
    configs = []
    for backend in backends:
        target: str | None = None
        options: dict[str, Scalar] = {}
        match backend:
            case MlflowBackend():
                options = _copying(backend) | {"tracking_uri": backend.tracking_uri, "experiment": backend.experiment}
            case WandbBackend():
                options = _copying(backend) | {
                    "project": backend.project,
                    "entity": backend.entity,
                    "mode": backend.mode,
                }
            case TensorboardBackend():
                pass  # it has no options
            case CustomBackend():
                target, options = backend.target, dict(backend.options)
            case _:
                assert_never(backend)
        configs.append(BackendConfig(kind=backend.kind, naming=backend.naming, options=options, target=target))
    return configs


def _copying(backend: MlflowBackend | WandbBackend) -> dict[str, Scalar]:
    return {"copy_checkpoints": backend.copy_checkpoints, "copy_up_to_mb": backend.copy_up_to_mb}

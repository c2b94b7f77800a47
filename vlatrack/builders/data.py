"""From the spec's sources to open datasets, their chosen episodes and their normalisation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never, cast

from vlatrack.data.episodes import Episode, EpisodeSource, episodes_digest, select_episodes
from vlatrack.data.samples import check_fit
from vlatrack.data.statistics import NormStats
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SPLITS
from vlatrack.plugins import make_plugin
from vlatrack.spec.data import CustomSource, LeRobotSource, LiberoSource, RldsSource, Source
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ExplicitRanges
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.checkpoint.policy import choice_digest, choice_of

DATASETS = "vlatrack.datasets"
"""Entry point group through which other packages offer datasets."""


@dataclass(frozen=True)
class Split:
    """A dataset, and the episodes of it that a split uses."""

    source: EpisodeSource
    episodes: list[Episode]


def open_splits(spec: ExperimentSpec, names: Collection[str] = SPLITS) -> dict[str, Split]:
    """Open the datasets and choose the episodes of each split; reads no frames.

    Raises:
        DataError: a dataset is missing, damaged, or lacks a task.
        SpecError: a custom dataset cannot be loaded.
    """
    splits = {}
    for name in SPLITS:
        source_spec: Source | None = getattr(spec.data, name)
        if source_spec is None or name not in names:
            continue
        try:
            source = open_source(source_spec)
        except SpecError as error:
            raise SpecError(f"data.{name}.target: {error}") from error
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

            return LiberoDataset(Path(spec.path), skip_no_ops=spec.skip_no_ops, images=spec.images)
        case RldsSource():
            from vlatrack.data.formats.rlds.dataset import RldsDataset

            return RldsDataset(
                Path(spec.path),
                fps=spec.fps,
                split=spec.split,
                action=spec.action,
                state=spec.state,
                instruction=spec.instruction,
            )
        case CustomSource():
            return cast(EpisodeSource, make_plugin(spec.target, group=DATASETS, options=spec.options))
        case _:
            assert_never(spec)


def build_norm_stats(spec: ExperimentSpec, train: Split) -> NormStats:
    """Ranges of actions and states, from the spec or computed from the training episodes."""
    statistics = spec.tokenizer.statistics
    if isinstance(statistics, ExplicitRanges):
        states = ValueRange(statistics.state_low, statistics.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(statistics.action_low, statistics.action_high), states)
    return NormStats.from_episodes(
        train.episodes, method=statistics, use_state=spec.data.use_state, name=train.source.name
    )


def data_fingerprints(splits: Mapping[str, Split]) -> dict[str, str]:
    """Digests of each split: of its dataset's files, and of its episodes in their order."""
    digests = {}
    for name, split in splits.items():
        digests[f"data.{name}"] = split.source.fingerprint()
        digests[choice_of(name)] = choice_digest([episode.index for episode in split.episodes])
        digests[f"data.{name} (episodes in their order)"] = episodes_digest(split.episodes)
    return digests


def check_data(spec: ExperimentSpec, splits: Mapping[str, Split], norm_stats: NormStats) -> None:
    """Check that every split fits the experiment, before anything slow begins.

    Raises:
        DataError: a camera is missing, or actions or states have another size.
    """
    for split in splits.values():
        check_fit(
            split.source,
            split.episodes,
            cameras=spec.data.cameras,
            action_dim=spec.action_head.action_dim,
            state_dim=None if norm_stats.states is None else norm_stats.states.dimensions,
            horizon=spec.action_head.time_horizon,
        )

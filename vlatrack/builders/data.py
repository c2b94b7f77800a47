"""From the spec's sources to open datasets, their chosen episodes and their normalisation."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import assert_never, cast

from vlatrack.data.checks.episodes import Needs
from vlatrack.data.checks.finding import Finding, errors_among
from vlatrack.data.checks.ranges import Ranges, check_ranges
from vlatrack.data.checks.splits import check_splits
from vlatrack.data.episode_statistics import EpisodeStatistics
from vlatrack.data.episodes import Episode, EpisodeSource, action_names, episodes_digest, select_episodes
from vlatrack.data.range_costs import TokenCosts, token_costs
from vlatrack.data.samples import check_fit
from vlatrack.data.statistics import NormStats
from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.schema import SPLITS, TRAIN
from vlatrack.plugins import make_plugin
from vlatrack.spec.data import CustomSource, LeRobotSource, LiberoSource, Source
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ComputedRanges, ExplicitRanges
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.training.checkpoint.policy import choice_digest, choice_of

DATASETS = "vlatrack.datasets"
"""Entry point group through which other packages offer datasets."""


@dataclass(frozen=True)
class Split:
    """A dataset, and the episodes of it that a split uses."""

    source: EpisodeSource
    episodes: Sequence[Episode]

    @cached_property
    def statistics(self) -> EpisodeStatistics:
        """Of its actions and states, in one pass over them."""
        return EpisodeStatistics.of(self.episodes)


@dataclass(frozen=True)
class Normalisation:
    """What actions and states are normalised by, what that costs, and what is wrong with it."""

    norm_stats: NormStats
    costs: TokenCosts  # on the training episodes
    findings: Sequence[Finding]


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
        case CustomSource():
            return cast(EpisodeSource, make_plugin(spec.target, group=DATASETS, options=spec.options))
        case _:
            assert_never(spec)


def build_norm_stats(spec: ExperimentSpec, train: Split) -> NormStats:
    """Ranges of actions and states, from the spec or computed from the training episodes.

    Raises:
        DataError: a line for each dimension whose range is none, such as that of one that never changes.
    """
    norm_stats = _norm_stats(spec, train)
    if _computed(spec) is not None and (errors := errors_among(_check_ranges(spec, train, norm_stats))):
        raise DataError("\n".join(finding.line() for finding in errors))
    return norm_stats


def normalisation_of(spec: ExperimentSpec, train: Split, norm_stats: NormStats | None = None) -> Normalisation:
    """As `build_norm_stats`, but what is wrong with the ranges is told instead of raised, with their costs.

    Args:
        norm_stats: those of a policy that goes on with its own; None: computed.

    Raises:
        DataError: an episode lacks the state, or a value is NaN or infinite.
    """
    norm_stats = norm_stats or _norm_stats(spec, train)
    found, bins = train.statistics, Bins(spec.tokenizer.bins)
    costs = token_costs(found.actions, found.states, norm_stats, bins)
    return Normalisation(norm_stats, costs, tuple(_check_ranges(spec, train, norm_stats)))


def _norm_stats(spec: ExperimentSpec, train: Split) -> NormStats:
    by_hand, computed = spec.tokenizer.statistics, _computed(spec)
    if computed is None:
        assert isinstance(by_hand, ExplicitRanges), by_hand
        states = ValueRange(by_hand.state_low, by_hand.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(by_hand.action_low, by_hand.action_high), states)
    return NormStats.from_episodes(
        train.episodes,
        method=computed.method,
        use_state=spec.data.use_state,
        name=train.source.name,
        action_as_is=computed.action_as_is,
        state_as_is=computed.state_as_is,
        statistics=train.statistics,
    )


def _check_ranges(spec: ExperimentSpec, train: Split, norm_stats: NormStats) -> Iterator[Finding]:
    """Of all dimensions of which there are ranges and values; whether these are as many is asked elsewhere."""
    found, name, names, computed = train.statistics, train.source.name, action_names(train.source), _computed(spec)
    as_is = () if computed is None else computed.action_as_is
    groups = [Ranges("action", found.actions, norm_stats.actions, names, as_is)]
    if norm_stats.states is not None:
        as_is = () if computed is None else computed.state_as_is
        groups.append(Ranges("state", found.states, norm_stats.states, as_is=as_is))
    return check_ranges(name, groups, None if computed is None else computed.method)


def _computed(spec: ExperimentSpec) -> ComputedRanges | None:
    """How the ranges are computed; None: they are written by hand."""
    chosen = spec.tokenizer.statistics
    if isinstance(chosen, str):
        return ComputedRanges(method=chosen)
    return chosen if isinstance(chosen, ComputedRanges) else None


def data_warnings(spec: ExperimentSpec, splits: Mapping[str, Split], norm_stats: NormStats) -> list[str]:
    """What is wrong with the data of a run that can start all the same, one line each; reads no frames.

    An overlap of training and validation is among them, and an error of `vlatrack data validate` alone: a policy may be
    made to learn its data by heart on purpose.
    """
    of_ranges = normalisation_of(spec, splits[TRAIN], norm_stats).findings
    return [f"data: {finding.line()}" for finding in (*of_ranges, *check_split_set(spec, splits))]


def check_split_set(spec: ExperimentSpec, splits: Mapping[str, Split]) -> list[Finding]:
    """See `check_splits`."""
    return check_splits(
        {name: (split.source, split.episodes) for name, split in splits.items()},
        train=TRAIN,
        needs=needs_of(spec),
        cameras=spec.data.cameras,
    )


def needs_of(spec: ExperimentSpec) -> Needs:
    """What the training needs of an episode."""
    return Needs(spec.action_head.time_horizon, spec.data.samples)


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

"""From the spec's sources to open datasets, their chosen episodes and their normalisation."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, assert_never, cast

from vlatrack.builders.mapping import mapped_source
from vlatrack.data.checks.episodes import Needs
from vlatrack.data.checks.finding import Finding, errors_among, plural, some
from vlatrack.data.checks.ranges import Ranges, check_ranges
from vlatrack.data.checks.splits import check_splits
from vlatrack.data.deltas import Deltas, DeltaSteps
from vlatrack.data.episode_statistics import EpisodeStatistics
from vlatrack.data.episodes import EpisodeSource, Reopens, action_names, episodes_digest
from vlatrack.data.mixture import MixturePart, MixtureSource
from vlatrack.data.progress import wanted_progress
from vlatrack.data.range_costs import TokenCosts, token_costs
from vlatrack.data.samples import check_fit
from vlatrack.data.selection import select_episodes
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.data.wrapped import problem_of
from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.schema import SPLITS, TRAIN
from vlatrack.plugins import make_plugin
from vlatrack.spec.data import (
    CustomSource,
    LeRobotSource,
    LiberoSource,
    MixtureSpec,
    RldsSource,
    RobomimicSource,
    RynnVlaConversationsSource,
    RynnVlaRecordsSource,
    Source,
    SplitSource,
    sources_of,
)
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ComputedRanges, ExplicitRanges
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.training.checkpoint.policy import choice_digest, choice_of

DATASETS = "vlatrack.datasets"
"""Entry point group through which other packages offer datasets."""


_SELECTION = ("tasks", "exclude_tasks", "part", "cap", "weight")
"""Settings of a source that choose among its episodes, and do not change them."""


@dataclass(frozen=True)
class Split:
    """A dataset, and the episodes of it that a split uses; of a mixture, those of all its parts, one after another."""

    source: EpisodeSource
    episodes: EpisodeList
    parts: tuple[tuple[StoredDataset, EpisodeList], ...]
    store: TokenStore
    deltas: Deltas | None = None

    @cached_property
    def key(self) -> str:
        """Tells the content of the split's episodes from that of others."""
        keys = [dataset.key for dataset, _ in self.parts]
        return choice_digest([*keys, self.choice])

    @cached_property
    def image_key(self) -> str:
        """The same of their images alone: equal for all mappings of actions and states."""
        return choice_digest([*(dataset.image_key for dataset, _ in self.parts), self.choice])

    @cached_property
    def choice(self) -> str:
        """A digest of which episodes it has."""
        return choice_digest(self.episodes.indices.tolist())

    @cached_property
    def statistics(self) -> EpisodeStatistics:
        """Of its actions and states, in one pass over them, the first time."""
        found = self.remembered("statistics", lambda: EpisodeStatistics.of(self.episodes).to_json())
        return EpisodeStatistics.from_json(found)

    @cached_property
    def delta_steps(self) -> DeltaSteps | None:
        """How many steps back the moments of its samples are, by rates and timestamps; None: they are counted.

        Raises:
            DataError: at some step there is no other at one of the deltas.
        """
        if self.deltas is None:
            return None
        deltas = self.deltas
        return DeltaSteps.joined([DeltaSteps.of(dataset.source, episodes, deltas) for dataset, episodes in self.parts])

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of this name that belongs to the split's episodes, computed at the first time."""
        return self.store.remembered(self.key, name, compute)


@dataclass(frozen=True)
class Normalisation:
    """What actions and states are normalised by, what that costs, and what is wrong with it."""

    norm_stats: NormStats
    costs: TokenCosts  # on the training episodes
    findings: Sequence[Finding]


def open_splits(spec: ExperimentSpec, store: TokenStore, names: Collection[str] = SPLITS) -> dict[str, Split]:
    """Open the datasets and choose the episodes of each split; reads no frames. Splits of one dataset share it.

    Args:
        store: where the episodes' numbers are kept.

    Raises:
        DataError: a dataset is missing, damaged, or lacks a task.
        SpecError: a custom dataset cannot be loaded.
    """
    splits, opened, deltas = {}, dict[str, StoredDataset](), deltas_of(spec)
    for name in SPLITS:
        split_spec: SplitSource | None = getattr(spec.data, name)
        if split_spec is None or name not in names or isinstance(split_spec, RynnVlaRecordsSource):
            continue
        place = f"data.{name}"
        if isinstance(split_spec, MixtureSpec):
            parts = [
                _open_part(part, f"{place}.sources.{number}", store, opened, spec.data.cameras)
                for number, part in enumerate(split_spec.sources)
            ]
            mixture = MixtureSource(
                [
                    MixturePart(dataset.source, part.weight)
                    for (dataset, _), part in zip(parts, split_spec.sources, strict=True)
                ],
                use_states=spec.data.use_state,
            )
            episodes = EpisodeList.joined(
                [episodes for _, episodes in parts],
                name=mixture.name,
                first_indices=mixture.first_indices,
                with_states=mixture.state_dim > 0,
            )
            splits[name] = Split(mixture, episodes, tuple(parts), store, deltas)
        else:
            dataset, episodes = _open_part(split_spec, place, store, opened, spec.data.cameras)
            splits[name] = Split(dataset.source, episodes, ((dataset, episodes),), store, deltas)
    return splits


def deltas_of(spec: ExperimentSpec) -> Deltas | None:
    """The moments whose images a prompt has, where the spec tells them in seconds."""
    seconds = spec.data.history_deltas
    return None if seconds is None else Deltas(seconds, spec.data.tolerance_s)


def skipping_bad_episodes(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec whose datasets all have ``skip_bad``."""

    def skipping(split: SplitSource | None) -> SplitSource | None:
        if isinstance(split, MixtureSpec):
            parts = tuple(part.model_copy(update={"skip_bad": True}) for part in split.sources)
            return split.model_copy(update={"sources": parts})
        if split is None or isinstance(split, RynnVlaRecordsSource):
            return split
        return split.model_copy(update={"skip_bad": True})

    splits = {name: skipping(getattr(spec.data, name)) for name in SPLITS}
    return spec.model_copy(update={"data": spec.data.model_copy(update=splits)})


def _open_part(
    spec: Source, place: str, store: TokenStore, opened: dict[str, StoredDataset], cameras: Sequence[str]
) -> tuple[StoredDataset, EpisodeList]:
    """The dataset of a source, with its chosen episodes; one that is open already is not opened again."""
    settings = spec.model_dump_json(exclude={*_SELECTION})
    if settings not in opened:
        try:
            dataset = open_dataset_of(spec, store)
            opened[settings] = _noting_missing_frames(dataset, store, cameras) if spec.skip_bad else dataset
        except SpecError as error:
            raise SpecError(f"{place}.target: {error}") from error
    episodes = select_episodes(
        opened[settings].table,
        tasks=spec.tasks,
        exclude_tasks=spec.exclude_tasks,
        part=spec.part,
        cap=spec.cap,
        skip_bad=spec.skip_bad,
    )
    return opened[settings], episodes


def _noting_missing_frames(dataset: StoredDataset, store: TokenStore, cameras: Sequence[str]) -> StoredDataset:
    """The dataset whose episodes without images of the experiment's cameras are known to be bad ones."""
    source, table = dataset.source, dataset.table
    asked = [camera for camera in cameras if camera in source.cameras]

    def find() -> dict[str, str]:
        tell, found = wanted_progress(), dict[str, str]()
        for position in range(len(table)):
            tell(f"looking for the images of {source.name}", position + 1, len(table), unit="episode", is_brief=True)
            if position not in table.problems and (problem := problem_of(source, table.episode(position), asked)):
                found[str(position)] = problem
        return found

    missing: dict[str, str] = store.remembered(dataset.key, f"missing frames {choice_digest(asked)}", find)
    return replace(dataset, table=table.noting({int(position): problem for position, problem in missing.items()}))


def open_dataset_of(spec: Source, store: TokenStore) -> StoredDataset:
    """The dataset that a source of the spec names, with the table of its episodes from the store."""
    source = open_source(spec)

    def opened_anew() -> EpisodeSource:
        return mapped_source(source.reopened() if isinstance(source, Reopens) else open_source(spec), spec)

    unmapped = spec.model_copy(update={"actions": None, "states": None, "cameras": {}})
    settings, image_settings = (
        of.model_dump_json(exclude={"path", "repo", "revision", "root", *_SELECTION}) for of in (spec, unmapped)
    )
    return store.dataset(
        mapped_source(source, spec),
        settings=settings,
        image_settings=image_settings,
        skip_bad=spec.skip_bad,
        reopen=opened_anew,
    )


def open_source(spec: Source) -> EpisodeSource:
    """The dataset that a source of the spec names."""
    match spec:
        case LeRobotSource():
            from vlatrack.data.formats.lerobot.places import open_lerobot

            return open_lerobot(spec.path, repo=spec.repo, revision=spec.revision, action=spec.action, state=spec.state)
        case LiberoSource():
            from vlatrack.data.formats.libero import LiberoDataset

            return LiberoDataset(
                Path(spec.path),
                skip_no_ops=spec.skip_no_ops,
                images=spec.images,
                order=spec.order,
                prompt=spec.prompt,
            )
        case RobomimicSource():
            from vlatrack.data.formats.robomimic import RobomimicDataset

            return RobomimicDataset(
                Path(spec.path),
                action=spec.action,
                state=spec.state,
                cameras=spec.camera_keys,
                instruction=spec.instruction,
                order=spec.order,
            )
        case RynnVlaConversationsSource():
            from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories

            return RynnVlaTrajectories(spec.path, spec.root, fps=spec.fps)
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


def build_norm_stats(spec: ExperimentSpec, train: Split | None) -> NormStats:
    """Ranges of actions and states, from the spec or computed from the training episodes.

    Args:
        train: None: it has finished token rows, and the spec has the ranges.

    Raises:
        DataError: a line for each dimension whose range is none, such as that of one that never changes.
    """
    norm_stats = _norm_stats(spec, train)
    if train is None or _computed(spec) is None:
        return norm_stats
    if errors := errors_among(_check_ranges(spec, train, norm_stats)):
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


def _norm_stats(spec: ExperimentSpec, train: Split | None) -> NormStats:
    by_hand, computed = spec.tokenizer.statistics, _computed(spec)
    if computed is None:
        assert isinstance(by_hand, ExplicitRanges), by_hand
        states = ValueRange(by_hand.state_low, by_hand.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(by_hand.action_low, by_hand.action_high), states)
    assert train is not None, "the spec demands ranges where the training has no episodes"
    found = train.remembered(
        f"norm_stats {computed} {spec.data.use_state}",
        lambda: NormStats.from_episodes(
            train.episodes,
            method=computed.method,
            use_state=spec.data.use_state,
            name=train.source.name,
            action_as_is=computed.action_as_is,
            state_as_is=computed.state_as_is,
            statistics=train.statistics,
        ).to_json(),
    )
    return NormStats.from_json(found)


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
    if TRAIN not in splits:
        return []
    train = splits[TRAIN]
    # What the findings say depends on all of this, names in them included.
    decides = [f"{name} {split.source.name} {split.key}" for name, split in splits.items()]
    decides += [repr((needs_of(spec), spec.data.cameras, spec.tokenizer, norm_stats))]

    def found() -> list[str]:
        of_ranges = normalisation_of(spec, train, norm_stats).findings
        return [f"data: {finding.line()}" for finding in (*of_ranges, *check_split_set(spec, splits))]

    lines: list[str] = train.remembered(f"warnings {choice_digest(decides)}", found)
    left_out = [warning for name, split in splits.items() for warning in _left_out(name, spec, split)]
    return [*left_out, *lines] + [
        f"data.{name}: {warning}"
        for name, split in splits.items()
        if isinstance(split.source, MixtureSource) and (warning := split.source.rate_warning) is not None
    ]


def _left_out(name: str, spec: ExperimentSpec, split: Split) -> Iterator[str]:
    """A line for each dataset of a split of which `skip_bad` leaves out episodes."""
    for source, (dataset, _) in zip(sources_of(getattr(spec.data, name)), split.parts, strict=True):
        table = dataset.table
        if source.skip_bad and table.problems:
            indexes = [int(table.index[position]) for position in sorted(table.problems)]
            first = table.problems[min(table.problems)]
            of_all = f"{plural(len(indexes), 'episode')} of {len(table):,}"
            yield f"data.{name}: skip_bad leaves out {of_all} ({some(indexes)}); the first: {first}"


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
        digests[choice_of(name)] = split.choice
        digests[f"data.{name} (episodes in their order)"] = split.remembered(
            "episodes_digest", partial(episodes_digest, split.episodes)
        )
    return digests


def check_data(spec: ExperimentSpec, splits: Mapping[str, Split], norm_stats: NormStats) -> None:
    """Check that every split fits the experiment, before anything slow begins.

    Raises:
        DataError: a camera is missing, actions or states have another size, or there is no step at a delta.
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
        _ = split.delta_steps  # raises where there is none at a delta

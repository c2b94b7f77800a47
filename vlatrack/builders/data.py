"""From the spec's sources to open datasets, their chosen episodes and their normalisation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never, cast

from vlatrack.data.episodes import EpisodeSource, episodes_digest
from vlatrack.data.samples import check_fit
from vlatrack.data.selection import select_episodes
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SPLITS
from vlatrack.plugins import make_plugin
from vlatrack.spec.data import CustomSource, EpisodeSelection, LeRobotSource, LiberoSource, Source
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ExplicitRanges
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.checkpoint.policy import choice_digest, choice_of

DATASETS = "vlatrack.datasets"
"""Entry point group through which other packages offer datasets."""


@dataclass(frozen=True)
class Split:
    """A dataset, and the episodes of it that a split uses."""

    dataset: StoredDataset
    episodes: EpisodeList

    @property
    def source(self) -> EpisodeSource:
        return self.dataset.source


def open_splits(spec: ExperimentSpec, store: TokenStore, names: Collection[str] = SPLITS) -> dict[str, Split]:
    """Open the datasets and choose the episodes of each split; reads no frames. Splits of one dataset share it.

    Args:
        store: where the episodes' numbers are kept.

    Raises:
        DataError: a dataset is missing, damaged, or lacks a task.
        SpecError: a custom dataset cannot be loaded.
    """
    splits, opened = {}, dict[str, StoredDataset]()
    for name in SPLITS:
        source_spec: Source | None = getattr(spec.data, name)
        if source_spec is None or name not in names:
            continue
        dataset_spec = source_spec.model_copy(update={"tasks": None, "exclude_tasks": (), "part": "all"})
        identity = dataset_spec.model_dump_json()
        if identity not in opened:
            try:
                opened[identity] = open_dataset_of(dataset_spec, store)
            except SpecError as error:
                raise SpecError(f"data.{name}.target: {error}") from error
        dataset = opened[identity]
        episodes = select_episodes(
            dataset.table,
            tasks=source_spec.tasks,
            exclude_tasks=source_spec.exclude_tasks,
            part=source_spec.part,
            skip_bad=source_spec.skip_bad,
        )
        splits[name] = Split(dataset, episodes)
    return splits


def open_dataset_of(spec: Source, store: TokenStore) -> StoredDataset:
    """The dataset that a source of the spec names, with the table of its episodes from the store."""
    settings = spec.model_dump_json(exclude={"path", *EpisodeSelection.model_fields})
    return store.dataset(open_source(spec), settings=settings, skip_bad=spec.skip_bad, reopen=lambda: open_source(spec))


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


def build_norm_stats(spec: ExperimentSpec, train: Split, store: TokenStore) -> NormStats:
    """Ranges of actions and states, from the spec or computed from the training episodes."""
    statistics = spec.tokenizer.statistics
    if isinstance(statistics, ExplicitRanges):
        states = ValueRange(statistics.state_low, statistics.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(statistics.action_low, statistics.action_high), states)
    computed = store.remembered(
        train.dataset,
        f"norm_stats {statistics} {spec.data.use_state} {_choice(train)}",
        lambda: NormStats.from_episodes(
            train.episodes, method=statistics, use_state=spec.data.use_state, name=train.source.name
        ).to_json(),
    )
    return NormStats.from_json(computed)


def data_fingerprints(splits: Mapping[str, Split], store: TokenStore) -> dict[str, str]:
    """Digests of each split: of its dataset's files, and of its episodes in their order."""
    digests = {}
    for name, split in splits.items():
        digests[f"data.{name}"] = split.source.fingerprint()
        digests[choice_of(name)] = _choice(split)
        digests[f"data.{name} (episodes in their order)"] = store.remembered(
            split.dataset, f"episodes_digest {_choice(split)}", partial(episodes_digest, split.episodes)
        )
    return digests


def _choice(split: Split) -> str:
    return choice_digest(split.episodes.indices.tolist())


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

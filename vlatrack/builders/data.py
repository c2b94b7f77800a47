"""From the spec's sources to open datasets, their chosen episodes and their normalisation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never, cast

from vlatrack.builders.mapping import mapped_source
from vlatrack.data.episodes import EpisodeSource, episodes_digest
from vlatrack.data.mixture import MixturePart, MixtureSource
from vlatrack.data.samples import check_fit
from vlatrack.data.selection import select_episodes
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SPLITS
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
)
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ExplicitRanges
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.checkpoint.policy import choice_digest, choice_of

DATASETS = "vlatrack.datasets"
"""Entry point group through which other packages offer datasets."""


@dataclass(frozen=True)
class Split:
    """A dataset, and the episodes of it that a split uses; of a mixture, those of all its parts, one after another."""

    source: EpisodeSource
    episodes: EpisodeList
    parts: tuple[tuple[StoredDataset, EpisodeList], ...]

    @property
    def key(self) -> str:
        """Tells the content of the split's datasets from that of others."""
        keys = [dataset.key for dataset, _ in self.parts]
        return keys[0] if len(keys) == 1 else choice_digest(keys)


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
        split_spec: SplitSource | None = getattr(spec.data, name)
        if split_spec is None or name not in names or isinstance(split_spec, RynnVlaRecordsSource):
            continue
        place = f"data.{name}"
        if isinstance(split_spec, MixtureSpec):
            parts = [
                _open_part(part, f"{place}.sources.{number}", store, opened)
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
            splits[name] = Split(mixture, episodes, tuple(parts))
        else:
            dataset, episodes = _open_part(split_spec, place, store, opened)
            splits[name] = Split(dataset.source, episodes, ((dataset, episodes),))
    return splits


def _open_part(
    spec: Source, place: str, store: TokenStore, opened: dict[str, StoredDataset]
) -> tuple[StoredDataset, EpisodeList]:
    """The dataset of a source, with its chosen episodes; one that is open already is not opened again."""
    settings = spec.model_dump_json(exclude={"tasks", "exclude_tasks", "part", "cap", "weight"})
    if settings not in opened:
        try:
            opened[settings] = open_dataset_of(spec, store)
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


def open_dataset_of(spec: Source, store: TokenStore) -> StoredDataset:
    """The dataset that a source of the spec names, with the table of its episodes from the store."""

    def opened() -> EpisodeSource:
        return mapped_source(open_source(spec), spec)

    settings = spec.model_dump_json(exclude={"path", "tasks", "exclude_tasks", "part", "cap", "weight"})
    return store.dataset(opened(), settings=settings, skip_bad=spec.skip_bad, reopen=opened)


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


def build_norm_stats(spec: ExperimentSpec, train: Split, store: TokenStore) -> NormStats:
    """Ranges of actions and states, from the spec or computed from the training episodes."""
    statistics = spec.tokenizer.statistics
    if isinstance(statistics, ExplicitRanges):
        states = ValueRange(statistics.state_low, statistics.state_high) if spec.data.use_state else None
        return NormStats(ValueRange(statistics.action_low, statistics.action_high), states)
    computed = store.remembered(
        train.key,
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
            split.key, f"episodes_digest {_choice(split)}", partial(episodes_digest, split.episodes)
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

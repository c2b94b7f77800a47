"""What is wrong between the splits of an experiment: the same episodes in training and validation, tasks, images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlatrack.data.checks.episodes import EpisodeRecord, Needs, check_episodes, records_of
from vlatrack.data.checks.finding import Finding, episodes_place, plural, some
from vlatrack.data.episodes import Episode, EpisodeSource, KnowsFiles, KnowsImageSizes


@dataclass(frozen=True)
class SplitRecords:
    """The episodes of a split, as far as the checks need them."""

    source: EpisodeSource
    records: Sequence[EpisodeRecord]

    @cached_property
    def dataset(self) -> str:
        """Tells it from other datasets: its folder, or, where it has none, what it holds."""
        return (
            str(Path(self.source.name).resolve()) if isinstance(self.source, KnowsFiles) else self.source.fingerprint()
        )


def check_splits(
    splits: Mapping[str, tuple[EpisodeSource, Sequence[Episode]]],
    *,
    train: str,
    needs: Needs,
    cameras: Sequence[str],
) -> list[Finding]:
    """All checks of an experiment's splits for which no frame is read.

    What it finds depends on nothing but the content of the datasets, the choice of the episodes and `needs`, so that a
    caller may keep it. It takes about 10 microseconds an episode, and a second for each GB of actions and states.

    Args:
        splits: the dataset of each, and the episodes of it.
        train: which of them is trained on.
    """
    scanned = {name: SplitRecords(source, records_of(episodes)) for name, (source, episodes) in splits.items()}
    return check_records(scanned, train=train, needs=needs, cameras=cameras)


def check_records(
    splits: Mapping[str, SplitRecords], *, train: str, needs: Needs, cameras: Sequence[str]
) -> list[Finding]:
    """As `check_splits`, from what has been kept of the episodes."""
    found = [
        finding for name, split in splits.items() for finding in check_episodes(f"data.{name}", split.records, needs)
    ]
    for name, split in splits.items():
        if name != train:
            found += check_overlap(train, splits[train], name, split)
            found += _check_tasks(name, splits[train].records, split.records)
    return [*found, *_check_sources(splits, cameras)]


def check_overlap(train: str, training: SplitRecords, name: str, held_out: SplitRecords) -> Iterator[Finding]:
    """Episodes of a validation split that are trained on: the same of the same dataset, or with the same content."""
    same_data = training.dataset == held_out.dataset
    places = {record.index for record in training.records} if same_data else set()
    contents = {record.digest for record in training.records}
    shared = [r.index for r in held_out.records if r.index in places or r.digest in contents]
    if not shared:
        return
    where = episodes_place(f"data.{name}", shared)
    message = f"{len(shared):,} of {plural(len(held_out.records), 'episode')} also in data.{train}"
    remedy = (
        f"its metrics say nothing about unseen episodes: give data.{train} part: all_but_last_tenth, or exclude_tasks"
        if same_data
        else f"its metrics say nothing about unseen episodes: leave them out of data.{train}"
    )
    yield Finding("error", "overlap", where, message, remedy, len(shared))


def _check_tasks(name: str, training: Sequence[EpisodeRecord], held_out: Sequence[EpisodeRecord]) -> Iterator[Finding]:
    """val_ind is about tasks of the training, val_ood about others."""
    trained, tasks = {record.task for record in training}, sorted({record.task for record in held_out})
    strange = [task for task in tasks if (task in trained) == (name == "val_ood")]
    if not strange or not name.startswith("val_"):
        return
    what = "trained on" if name == "val_ood" else "not trained on"
    message = f"{plural(len(strange), 'task')} {what} ({some([repr(task) for task in strange])})"
    other = "val_ind" if name == "val_ood" else "val_ood"
    remedy = f"move it to data.{other}, or leave it out"
    yield Finding("warning", "tasks", f"data.{name}", message, remedy, len(strange))


def _check_sources(splits: Mapping[str, SplitRecords], cameras: Sequence[str]) -> Iterator[Finding]:
    """Datasets that differ in what a policy takes for the same: the size of images, the time between two steps."""
    for camera in cameras:
        sizes = {
            name: split.source.image_size(camera)
            for name, split in splits.items()
            if isinstance(split.source, KnowsImageSizes) and camera in split.source.cameras
        }
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{height} x {width} in data.{name}" for name, (height, width) in sizes.items())
            remedy = "all are scaled to the same square: record them alike, or expect other image tokens"
            yield Finding("warning", "image sizes", camera, f"images differ in size: {shown}", remedy, len(sizes))
    rates = {name: split.source.fps for name, split in splits.items()}
    if len(set(rates.values())) > 1:
        shown = ", ".join(f"{fps:g} in data.{name}" for name, fps in rates.items())
        remedy = "an action then takes another time: resample one of them"
        yield Finding("warning", "fps", "data", f"steps a second differ: {shown}", remedy, len(rates))

"""`vlatrack data validate`: what is wrong with the data of an experiment, or with a dataset."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.completion import complete_setting
from vlatrack.cli.dataset_options import ACTION, INSTRUCTION, SPLIT, STATE, Action, Fps, Instruction, State
from vlatrack.cli.dataset_options import Split as SplitName

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.builders.data import Split
    from vlatrack.cli.bars import StillAtIt
    from vlatrack.cli.data_images import Images
    from vlatrack.data.checks.finding import Finding
    from vlatrack.data.episode_statistics import EpisodeStatistics, ValueStatistics
    from vlatrack.data.episodes import EpisodeSource
    from vlatrack.data.range_costs import TokenCosts
    from vlatrack.spec.experiment import ExperimentSpec

FOUND_ERRORS = 1
_EXPERIMENTS = (".yaml", ".yml")


@dataclass(frozen=True)
class _LookedAt:
    """A dataset, or a split of it."""

    lengths: Sequence[int]
    tasks: int
    statistics: "EpisodeStatistics"

    def counts(self) -> dict[str, int]:
        """By what is counted, in the singular."""
        return {"episode": len(self.lengths), "step": sum(self.lengths), "task": self.tasks}


@dataclass
class _Report:
    """What has been looked at, and what was found."""

    findings: list["Finding"] = field(default_factory=list)
    looked_at: dict[str, _LookedAt] = field(default_factory=dict)
    costs: "TokenCosts | None" = None


def validate(
    what: Annotated[
        Path,
        typer.Argument(metavar="WHAT", help="An experiment's YAML, or the folder of a dataset.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to the YAML, such as data.train.part=all.",
            show_default=False,
            autocompletion=complete_setting,
        ),
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="Decode every image, too; else those of one episode are looked at.")
    ] = False,
    render: Annotated[
        str | None,
        typer.Option(
            metavar="SIMULATOR",
            help="Compare first images with those that metaworld, or a suite such as libero_goal, renders.",
            show_default=False,
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="List episodes of a dataset that cannot be read, and go on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    action: Action = ACTION,
    state: State = STATE,
    fps: Fps = None,
    split: SplitName = SPLIT,
    instruction: Instruction = INSTRUCTION,
) -> None:
    """Look for what is wrong with demonstrations: episodes of the validation that are trained on, duplicates, NaN,
    constant or lost numbers, missing instructions, short episodes, black or frozen cameras, images upside down.

    Exit code 0: no error, perhaps warnings; 1: at least one error; 2: the data cannot be used at all.

    Example: [bold]vlatrack data validate experiments/quickstart.yaml[/bold]

    All images of a dataset: [bold]vlatrack data validate data/my-demonstrations --frames --skip-bad[/bold]
    """
    from rich.console import Console

    from vlatrack.cli.bars import WIDTH_OF_FILES, Bars
    from vlatrack.cli.data_images import Images
    from vlatrack.data.checks.finding import errors_among, verdict
    from vlatrack.data.formats.opening import open_dataset
    from vlatrack.errors import SpecError

    is_experiment = what.suffix in _EXPERIMENTS
    if overrides and not is_experiment:
        raise SpecError(f"{overrides[0]!r}: KEY=VALUE changes an experiment's YAML, and {what} is none")
    terminal = Console(stderr=True, highlight=False)
    with Bars(terminal) as bars:
        if is_experiment:
            report = _experiment(what, overrides or (), Images(bars, frames, render), skip_bad=skip_bad)
        else:
            source = open_dataset(what, action=action, state=state, fps=fps, split=split, instruction=instruction)
            report = _dataset(what, source, Images(bars, frames, render), skip_bad=skip_bad)
    errors = errors_among(report.findings)
    told = f"{what}: {'NOT in order' if errors else 'in order'}: {verdict(report.findings)}"
    if as_json:
        typer.echo(json.dumps(_as_json(report, told), indent=1))
    else:
        console = Console(highlight=False, markup=False, emoji=False)
        console.width = console.width if console.is_terminal else WIDTH_OF_FILES
        _show(console, report, told)
    if errors:
        raise typer.Exit(FOUND_ERRORS)


def _dataset(path: Path, source: "EpisodeSource", images: "Images", *, skip_bad: bool) -> _Report:
    from vlatrack.data.checks.scan import episodes_of, scan_dataset
    from vlatrack.data.episodes import CountsEpisodes

    # Its bars tell how many have been read, if that can be told.
    with nullcontext() if isinstance(source, CountsEpisodes) else _reading(path):
        scan = scan_dataset(source, skip_bad=skip_bad)
    lengths = [record.length for record in scan.records]
    readable = episodes_of(source, lambda position, error: None)  # they are findings already
    report = _Report([*scan.findings(), *_times(source.name, source)])
    report.findings += images.look(source.name, source, readable, source.cameras, lengths)
    readable = episodes_of(source, lambda position, error: None)
    report.findings += images.turns(source.name, source, readable, source.cameras)
    report.looked_at[source.name] = _LookedAt(lengths, len({record.task for record in scan.records}), scan.statistics)
    return report


def _experiment(file: Path, overrides: Sequence[str], images: "Images", *, skip_bad: bool) -> _Report:
    from vlatrack.cli.progress import prepare_process

    prepare_process()
    from vlatrack.builders.data import check_data, check_split_set, normalisation_of, open_splits, skipping_bad_episodes
    from vlatrack.data.digests import user_cache
    from vlatrack.data.store.token_store import TokenStore
    from vlatrack.errors import SpecError
    from vlatrack.spec.load import load_spec

    spec = load_spec(file, overrides)
    with nullcontext() if _tells_progress(spec) else _reading(file):
        opened = skipping_bad_episodes(spec) if skip_bad else spec
        splits = open_splits(opened, TokenStore(user_cache() / "data"))
    if "train" not in splits:
        raise SpecError(
            f"{file}: data.train has finished token rows, which have no episodes to look at; a run compares each of "
            "them with the experiment when it starts"
        )
    report = _Report(_bad_episodes(splits))
    report.findings += check_split_set(spec, splits)
    if not any(finding.check in ("not finite", "no samples") for finding in report.findings):
        normalisation = normalisation_of(spec, splits["train"])
        check_data(spec, splits, normalisation.norm_stats)
        report.findings += normalisation.findings
        report.costs = normalisation.costs
    for name, split in splits.items():
        lengths = [episode.length for episode in split.episodes]
        for dataset, episodes in split.parts:  # each with a rate of its own
            place = f"data.{name}" if len(split.parts) == 1 else f"data.{name}: {dataset.source.name}"
            report.findings += _times(place, dataset.source, set(episodes.indices.tolist()))
        report.findings += images.look(f"data.{name}", split.source, split.episodes, spec.data.cameras, lengths)
        tasks = {episode.task for episode in split.episodes}
        report.looked_at[f"data.{name}"] = _LookedAt(lengths, len(tasks), split.statistics)
    train, rotation = splits["train"], spec.data.recorded.rotation
    report.findings += images.turns("data.train", train.source, train.episodes, spec.data.cameras, rotation)
    return report


def _tells_progress(spec: "ExperimentSpec") -> bool:
    """Whether a dataset of an experiment is downloaded, or read episode by episode, with bars that tell how far."""
    from vlatrack.spec.data import LeRobotSource, MixtureSpec

    splits = (spec.data.train, spec.data.val_ind, spec.data.val_ood)
    sources = [x for split in splits for x in (split.sources if isinstance(split, MixtureSpec) else (split,))]
    return any(isinstance(source, LeRobotSource) for source in sources)


def _times(where: str, source: "EpisodeSource", chosen: "set[int] | None" = None) -> "Iterator[Finding]":
    """Whether steps come as fast as the dataset says, in the chosen episodes or in all."""
    from vlatrack.data.checks.times import KnowsTimes, check_times

    if isinstance(source, KnowsTimes):
        times = ((episode, of) for episode, of in source.step_times() if chosen is None or episode in chosen)
        yield from check_times(where, source.fps, times)


def _bad_episodes(splits: "Mapping[str, Split]") -> "list[Finding]":
    """Those of all their datasets that are left out, once each."""
    from vlatrack.data.checks.finding import Finding
    from vlatrack.errors import DataError

    tables = {dataset.key: dataset.table for split in splits.values() for dataset, _ in split.parts}
    return [
        Finding.of_error("unreadable", f"{table.name}, episode {table.index[position]}", DataError(problem))
        for table in tables.values()
        for position, problem in table.problems.items()
    ]


def _reading(what: Path) -> "StillAtIt":
    """How many episodes there are is not known before they are read."""
    from rich.console import Console

    from vlatrack.cli.bars import StillAtIt

    return StillAtIt(Console(stderr=True, highlight=False), f"reading the episodes of {what}")


def _numbers(found: "Sequence[ValueStatistics]") -> list[dict[str, object]]:
    from vlatrack.data.episode_statistics import QUANTILES

    return [
        {
            "count": of.count,
            "min": of.low if of.count else None,
            "max": of.high if of.count else None,
            "mean": of.mean,
            "std": of.std if of.count else None,
            "quantiles": dict(zip(map(str, QUANTILES), of.quantiles(), strict=True)) if of.count else None,
            "not_finite": of.not_finite,
        }
        for of in found
    ]


def _as_json(report: _Report, told: str) -> dict[str, object]:
    costs = report.costs
    return {
        "verdict": told,
        "findings": [finding.data() for finding in report.findings],
        "looked_at": {
            name: {
                **{f"{unit}s": number for unit, number in of.counts().items()},
                "actions": _numbers(of.statistics.actions),
                "states": _numbers(of.statistics.states),
            }
            for name, of in report.looked_at.items()
        },
        "costs": None if costs is None else asdict(costs),
    }


def _show(console: "Console", report: _Report, told: str) -> None:
    from rich.table import Table

    from vlatrack.data.checks.finding import plural
    from vlatrack.tracking.printable import printable

    for name, of in report.looked_at.items():
        counts = ", ".join(plural(number, unit) for unit, number in of.counts().items())
        console.print(printable(f"{name}: {counts}"), soft_wrap=True)
    if report.costs is not None:
        console.print(report.costs.line(), soft_wrap=True)
    if report.findings:
        table = Table("", "check", "where", "found", "what to do", box=None, pad_edge=False)
        for finding in sorted(report.findings, key=lambda finding: finding.severity):  # errors first
            words = (finding.severity, finding.check, finding.where, finding.message, finding.remedy)
            table.add_row(*(printable(word) for word in words))
        console.print()
        console.print(table)
        console.print()
    console.print(printable(told), soft_wrap=True)

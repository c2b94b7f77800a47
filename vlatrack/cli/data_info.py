"""`vlatrack data info`: a dataset on one screen, and in two pictures."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatrack.cli.dataset_options import ACTION, INSTRUCTION, SPLIT, STATE, Action, Fps, Instruction, Split, State

if TYPE_CHECKING:
    from rich.table import Table

    from vlatrack.cli.bars import Bars, StillAtIt
    from vlatrack.data.checks.scan import DatasetScan
    from vlatrack.data.episode_statistics import ValueStatistics
    from vlatrack.data.episodes import EpisodeSource

_MOST_TASKS = 15
_SHEET_EPISODES, _SHEET_MOMENTS = 6, 7
_PIXELS = 240
"""A frame of a contact sheet has at most so many on a side."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_FORMATS = (".png", ".pdf", ".svg")


def info(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of a LeRobot or RLDS dataset, or of *.hdf5; a JSON list of RynnVLA-002.", show_default=False
        ),
    ],
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw frames of some episodes into this file.", show_default=False),
    ] = None,
    histograms: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw how the actions are distributed, with ranges and bins.", show_default=False
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw both, as <dataset>-frames.png and <dataset>-actions.png, here.")
    ] = False,
    bins: Annotated[int, typer.Option(min=32, max=4998, help="Edges of bins in the histograms.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    action: Action = ACTION,
    state: State = STATE,
    fps: Fps = None,
    split: Split = SPLIT,
    instruction: Instruction = INSTRUCTION,
) -> None:
    """Show the episodes, lengths, tasks, cameras and ranges of a dataset, and its fingerprint.

    Example: [bold]vlatrack data info experiments/data/metaworld-mini[/bold]

    With pictures: [bold]vlatrack data info experiments/data/metaworld-mini --pictures[/bold]
    """
    from rich.console import Console

    from vlatrack.data.checks.scan import scan_dataset
    from vlatrack.data.formats.opening import open_dataset
    from vlatrack.errors import DataError

    name = path.resolve().name or "dataset"
    sheet = contact_sheet or (Path(f"{name}-frames.png") if pictures else None)
    distributions = histograms or (Path(f"{name}-actions.png") if pictures else None)
    _check_outputs(sheet, distributions)
    try:
        source = open_dataset(path, action=action, state=state, fps=fps, split=split, instruction=instruction)
        with reading(path, source):
            scan = scan_dataset(source, skip_bad=False)
            overview = _overview(scan, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the folder of a dataset") from None
    if as_json:
        typer.echo(json.dumps(_as_json(scan, overview), indent=1))
    else:
        console = Console(highlight=False, markup=False, emoji=False)  # a task may be called "pick [/b] up" or ":x:"
        for table in (_overview_table(overview), _task_table(scan), *_range_tables(scan)):
            console.print(table)
            console.print()
    if sheet is not None:
        _draw_contact_sheet(scan, sheet)
    if distributions is not None:
        _draw_histograms(scan, distributions, bins)


def reading(path: Path, source: "EpisodeSource") -> "Bars | StillAtIt":
    """Shows how many episodes have been read, or, of a dataset that does not know how many it has, that it is read."""
    from rich.console import Console

    from vlatrack.cli.bars import Bars, StillAtIt
    from vlatrack.data.episodes import CountsEpisodes

    console = Console(stderr=True, highlight=False)
    return Bars(console) if isinstance(source, CountsEpisodes) else StillAtIt(console, f"reading {path}")


def _check_outputs(*outputs: Path | None) -> None:
    """Before anything is read: a dataset takes its time."""
    from vlatrack.errors import DataError

    for output in outputs:
        if output is not None and output.suffix not in _FORMATS:
            raise DataError(f"{output}: unknown kind of picture; end its name in {', '.join(_FORMATS)}")
        if output is not None and not output.parent.is_dir():
            raise DataError(f"{output}: no folder {output.parent}; make it first")


def _overview(scan: "DatasetScan", path: Path) -> dict[str, str]:
    source, lengths = scan.source, [record.length for record in scan.records]
    steps = sum(lengths)
    rows = {
        "dataset": source.name,
        "episodes": f"{len(lengths)}, {steps:,} steps, {steps / source.fps:,.0f} s",
        "lengths": _describe_lengths(lengths),
        "cameras": ", ".join(_describe_cameras(scan)) or "none",
        "action / state": f"{source.action_dim} / {source.state_dim} numbers",
        "fps": f"{source.fps:g}",
        "size": _described_size(path),
        "fingerprint": source.fingerprint(),
    }
    return {name: value for name, value in rows.items() if value}


def _describe_lengths(lengths: Sequence[int]) -> str:
    from statistics import median

    import numpy as np

    if not lengths:
        return ""
    counts, _ = np.histogram(lengths, bins=24)
    return f"{min(lengths)} |{_bars(counts)}| {max(lengths)} steps, median {median(lengths):g}"


def _bars(counts: Iterable[float]) -> str:
    """A character for each count, as high as it is beside the largest; whatever is there can be seen."""
    values = list(counts)
    top = max(values)
    return "".join(_BLOCKS[max(1, round(8 * value / top)) if value else 0] for value in values)


def _describe_cameras(scan: "DatasetScan") -> Iterator[str]:
    from vlatrack.data.checks.scan import episodes_of
    from vlatrack.data.recorded import image_sizes

    if not scan.records:
        yield from scan.source.cameras
        return
    first = next(iter(episodes_of(scan.source, lambda position, error: None)))
    for camera, (height, width) in image_sizes(scan.source, first, scan.source.cameras).items():
        yield f"{camera} ({height} x {width})"


def _overview_table(rows: dict[str, str]) -> "Table":
    from rich.table import Table

    from vlatrack.tracking.printable import printable

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def _lengths_of_tasks(scan: "DatasetScan") -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = {}
    for record in scan.records:
        lengths.setdefault(record.task, []).append(record.length)
    return dict(sorted(lengths.items()))


def _task_table(scan: "DatasetScan") -> "Table":
    from rich.table import Table

    from vlatrack.tracking.printable import printable

    of_tasks = _lengths_of_tasks(scan)
    table = Table("task", box=None, pad_edge=False)
    for heading in ("episodes", "steps", "shortest", "longest"):
        table.add_column(heading, justify="right")
    for task, of_task in list(of_tasks.items())[:_MOST_TASKS]:
        numbers = (len(of_task), sum(of_task), min(of_task), max(of_task))
        table.add_row(printable(task), *(f"{number:,}" for number in numbers))
    if len(of_tasks) > _MOST_TASKS:
        table.add_row(f"… and {len(of_tasks) - _MOST_TASKS} more (--json has all)")
    return table


def _range_tables(scan: "DatasetScan") -> "Iterator[Table]":
    from rich.table import Table

    from vlatrack.tracking.printable import printable

    for what, found, names in _numbers(scan):
        if not found or not found[0].count:
            continue
        table = Table(what, box=None, pad_edge=False)
        for heading in ("min", "1 %", "mean", "99 %", "max"):
            table.add_column(heading, justify="right")
        table.add_column("from min to max", no_wrap=True)
        for name, of in zip(names, found, strict=True):
            low, high = of.quantiles((0.01, 0.99))
            shown = (f"{value:.4g}" for value in (of.low, low, of.mean, high, of.high))
            table.add_row(printable(name), *shown, _shape(of))
        yield table


def _numbers(scan: "DatasetScan") -> "Iterator[tuple[str, Sequence[ValueStatistics], Sequence[str]]]":
    """Action and state: what it is, its statistics, and the name or the number of each dimension."""
    from vlatrack.data.episodes import NamesActions

    found, source = scan.statistics, scan.source
    named = tuple(source.action_names) if isinstance(source, NamesActions) else ()
    own = named if len(named) == len(found.actions) else ()
    yield "action", found.actions, [f"{n} {own[n]}" if own else str(n) for n in range(len(found.actions))]
    yield "state", found.states, [str(number) for number in range(len(found.states))]


def _shape(of: "ValueStatistics") -> str:
    import numpy as np

    if of.low == of.high:
        return "always the same"
    heights, _ = np.histogram(of.counts.values(), bins=16, range=(of.low, of.high), weights=of.counts.counts)
    return _bars(np.sqrt(heights))  # of the root, so that what is rare is seen beside what is not


def _as_json(scan: "DatasetScan", overview: dict[str, str]) -> dict[str, Any]:
    from vlatrack.data.episode_statistics import QUANTILES

    source = scan.source
    return {
        "dataset": source.name,
        "fingerprint": overview["fingerprint"],
        "fps": source.fps,
        "cameras": list(source.cameras),
        "lengths": [record.length for record in scan.records],
        "tasks": {task: {"episodes": len(of), "steps": sum(of)} for task, of in _lengths_of_tasks(scan).items()},
        **{
            what: [
                {"name": name, "min": of.low, "max": of.high, "mean": of.mean, "std": of.std}
                | {"quantiles": dict(zip(map(str, QUANTILES), of.quantiles(), strict=True))}
                for name, of in zip(names, found, strict=True)
                if of.count
            ]
            for what, found, names in _numbers(scan)
        },
    }


def _draw_contact_sheet(scan: "DatasetScan", output: Path) -> None:
    from vlatrack.data.checks.finding import plural
    from vlatrack.data.checks.scan import episodes_of
    from vlatrack.data.sampled_frames import chosen_episodes, frames_at, spread
    from vlatrack.errors import DataError
    from vlatrack.reports.dataset_pictures import SheetRow, draw_contact_sheet

    source = scan.source
    if not (scan.records and source.cameras):
        raise DataError(f"{source.name}: no episode, or no camera, of which there could be frames")
    rows = []
    readable = episodes_of(source, lambda position, error: None)
    for episode in chosen_episodes(readable, spread(len(scan.records), _SHEET_EPISODES)):
        steps = spread(episode.length, _SHEET_MOMENTS)
        for camera in source.cameras:
            frames = [_small(frame) for frame in frames_at(source, episode, camera, steps)]
            label = f"episode {episode.index}\n{camera.removeprefix('observation.images.')}"
            rows.append(SheetRow(label, frames, steps))
    draw_contact_sheet(rows, output, title=f"{Path(source.name).name}: {plural(len(scan.records), 'episode')}")
    typer.echo(f"wrote {output}", err=True)


def _small(frame: Any) -> Any:
    import numpy as np
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(image)


def _draw_histograms(scan: "DatasetScan", output: Path, bins: int) -> None:
    from vlatrack.errors import DataError
    from vlatrack.reports.dataset_pictures import Distribution, draw_distributions

    _, found, names = next(_numbers(scan))
    distributions = [
        Distribution(f"action {name}", of.counts.values(), of.counts.counts, (low, high))
        for name, of in zip(names, found, strict=True)
        if of.count
        for low, high in (of.quantiles((0.01, 0.99)),)
    ]
    if not distributions:
        raise DataError(f"{scan.source.name}: no actions that could be drawn")
    steps = sum(record.length for record in scan.records)
    title = f"{Path(scan.source.name).name}: actions of {steps:,} steps"
    draw_distributions(distributions, output, title=title, bins=bins)
    typer.echo(f"wrote {output}", err=True)


def _described_size(path: Path) -> str:
    """In MB; empty for a list, which says nothing of the size of the files that it names."""
    if path.suffix in (".json", ".jsonl"):
        return ""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"

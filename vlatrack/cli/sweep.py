"""`vlatrack sweep`: search over the settings of an experiment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.errors import SpecError

if TYPE_CHECKING:
    from vlatrack.spec.sweep_file import Sweep
    from vlatrack.sweep.results import SweepResults, TrialRow
    from vlatrack.sweep.storage import SweepFolder
    from vlatrack.sweep.study import SweepStudy


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep's YAML file.", show_default=False)],
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs, and the sweeps.")] = Path("runs"),
    status: Annotated[
        bool, typer.Option("--status", help="Print the trials and the best configuration; start nothing.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Print the experiment of the best configuration as YAML; start nothing.")
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Forget the sweep: its database, page and logs. Its runs stay.")
    ] = False,
) -> None:
    """Train an experiment with many settings, and find the best.

    Each trial is a run of its own, in a process of its own, below runs/; the table, the page and the database of the
    sweep are in runs/sweeps/<name>/. The same command, called again, goes on where the sweep stopped; called twice at
    once, both work on it. With VLATRACK_SWEEP_STORAGE=postgresql+psycopg2://... workers on many machines share one.
    Ctrl-C saves a checkpoint of each running trial and ends.

    Exit codes: 0 done, 2 a mistake, 130 or 143 ended by a signal.

    Examples:

    [bold]vlatrack sweep experiments/sweeps/quickstart.yaml[/bold]

    [bold]vlatrack sweep experiments/sweeps/quickstart.yaml --status[/bold]

    [bold]vlatrack sweep experiments/sweeps/quickstart.yaml --best > best.yaml[/bold]

    [bold]vlatrack run best.yaml train.epochs=20[/bold]
    """
    from vlatrack.spec.sweep_file import load_sweep
    from vlatrack.sweep.storage import SweepFolder, check_optuna
    from vlatrack.tracking.run_files import checked_runs_folder

    if status + best + drop > 1:
        raise SpecError("vlatrack sweep: one of --status, --best and --drop at a time")
    check_optuna()
    wanted = load_sweep(file)
    folder = SweepFolder(checked_runs_folder(runs), wanted.spec.name)
    if drop:
        _drop(folder)
    elif status or best:
        _show(wanted, folder, best=best)
    else:
        _work(wanted, folder)


def _work(wanted: "Sweep", folder: "SweepFolder") -> None:
    from vlatrack.cli.progress import prepare_process
    from vlatrack.sweep.worker import work_on

    prepare_process()
    progress = _Progress(wanted, folder)
    worker = work_on(wanted, folder, progress.changed)
    results = progress.results
    assert results is not None, "it is told of the sweep before it begins"
    if worker.stopped_by is not None:
        typer.echo(f"stopped with {_counted(results)} · go on: the same command")
        raise typer.Exit(128 + worker.stopped_by)
    _say_end(results, folder)


class _Progress:
    """Prints a line for each trial that begins or ends, and keeps the page and the table up to date."""

    def __init__(self, wanted: "Sweep", folder: "SweepFolder") -> None:
        self._sweep, self._folder = wanted, folder
        self.results: SweepResults | None = None

    def changed(self, study: "SweepStudy", first_number: int | None) -> None:
        from vlatrack.sweep.results import SweepResults, write_results
        from vlatrack.sweep.trials import first_number_of

        is_first = self.results is None
        self.results = results = SweepResults.of(study)
        folder = self._folder
        write_results(results, self._sweep, page=folder.page, table=folder.table, best=folder.best)
        if first_number is None:
            if is_first:
                _say(f"sweep {results.name}: {_counted(results)} · {folder.path}")
            return
        numbers = [first_number_of(trial) for trial in study.trials()]
        if first_number in numbers:
            _say(_trial_line(results, results.rows[numbers.index(first_number)]))


def _trial_line(results: "SweepResults", row: "TrialRow") -> str:
    from vlatrack.sweep.results import one_setting

    settings = " ".join(map(one_setting, row.settings.items()))
    state = {"running": "begins", "waiting": "stopped"}.get(row.state, row.state)
    told = f"trial {row.number}/{results.trials} {state}"
    if row.values is not None:
        best = " (best so far)" if row in results.best and len(results.objectives) == 1 else ""
        best = " (on the front)" if row in results.best and len(results.objectives) > 1 else best
        told += f"  {_values(results, row)}{best}"
    told += f"  {settings}"
    if row.state != "running" and row.seconds is not None:
        told += f"  {row.seconds:.0f} s"
    return told if row.reason is None else f"{told}  {row.reason}"


def _values(results: "SweepResults", row: "TrialRow") -> str:
    values = zip(results.objectives, row.values or (), strict=True)
    return "  ".join(f"{name} {value:.4g}" for name, value in values)


def _counted(results: "SweepResults") -> str:
    states = ("complete", "pruned", "failed", "running", "waiting")
    counts = [f"{count} {state}" for state in states if (count := results.count(state))]
    return f"{len(results.rows)} of {results.trials} trials" + (f" ({', '.join(counts)})" if counts else "")


def _say_end(results: "SweepResults", folder: "SweepFolder") -> None:
    if not results.best:
        raise SpecError(f"sweep {results.name}: no trial is complete ({_counted(results)}); {folder.table} says why")
    for row in results.best:
        _say(f"best: trial {row.number}  {_values(results, row)}  {folder.best / f'trial-{row.number:05d}.yaml'}")
    _say(f"DONE {_counted(results)} · look at it: {folder.page}")


def _show(wanted: "Sweep", folder: "SweepFolder", *, best: bool) -> None:
    """The state of a sweep that has begun."""
    from vlatrack.sweep.results import SweepResults, best_experiment
    from vlatrack.sweep.storage import telling_storage_errors
    from vlatrack.sweep.study import SweepStudy

    _check_begun(folder)
    with telling_storage_errors(folder):
        results = SweepResults.of(SweepStudy(wanted, folder))
    if not best:
        for row in results.rows:
            _say(_trial_line(results, row))
        for row in results.best:
            _say(f"best: trial {row.number}  {_values(results, row)}")
        _say(f"{_counted(results)} · {folder.page}")
        return
    if not results.best:
        raise SpecError(f"sweep {results.name}: no trial is complete yet ({_counted(results)})")
    if len(results.best) > 1:
        raise SpecError(
            f"sweep {results.name}: {len(results.best)} configurations are on the Pareto front; choose one of "
            f"{folder.best}/trial-*.yaml ({folder.page} shows them)"
        )
    typer.echo(best_experiment(wanted, results.best[0]), nl=False)


def _check_begun(folder: "SweepFolder") -> None:
    if not folder.path.is_dir():
        raise SpecError(f"{folder.path}: no such sweep yet; start it without an option, or give its --runs")


def _drop(folder: "SweepFolder") -> None:
    from vlatrack.sweep.storage import telling_storage_errors
    from vlatrack.sweep.study import drop_sweep

    _check_begun(folder)
    with telling_storage_errors(folder):
        drop_sweep(folder)
    _say(f"dropped {folder.path}; its runs are still in {folder.runs}")


def _say(text: str) -> None:
    from vlatrack.tracking.printable import printable

    typer.echo(printable(text))

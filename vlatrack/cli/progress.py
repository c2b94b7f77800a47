"""A run in the terminal: a progress bar with losses, a line per epoch, and a table at the end."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from vlatrack.cli.delivery import delivery_line
from vlatrack.cli.milestones import Milestones
from vlatrack.runner.processes import quiet_libraries
from vlatrack.tracking.printable import printable
from vlatrack.tracking.user import provide_user
from vlatrack.training.callback import Callback, EpochResults, HealthFinding, RunEnd

if TYPE_CHECKING:
    from vlatrack.runner.evaluate import Evaluation
    from vlatrack.training.state import TrainState

_log = logging.getLogger(__name__)
_ON_BAR = ("closs", "loss_ct", "z_loss", "l1_loss_action")


def prepare_process() -> None:
    """Set what torch and related libraries read when they are imported."""
    # OpenMP threads spin for long by default, which slows training on a CPU severalfold as soon as another process
    # wants a core. This many spins (about ten microseconds) cost nothing otherwise.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Messages of these libraries would break the progress bar.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    provide_user()
    warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")


class _Output:
    """Standard output, whose reader may leave (a pipe, a terminal that is closed)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        try:
            return sys.stdout.write(text)
        except OSError as error:
            raise BrokenPipeError from error

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise BrokenPipeError from error


class _RunConsole(Console):
    """A console without which a run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is still in the buffer
        _log.warning("nobody reads the output any more; the run goes on without")


class TerminalDisplay(Callback):
    """Draws a run's progress with rich."""

    def __init__(self, *, shown: bool = True) -> None:
        """`shown` is false on all ranks but one."""
        self._console = _RunConsole(file=cast(IO[str], _Output()), highlight=False, quiet=not shown)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,  # a log file gets lines
        )
        self._milestones = Milestones(self._console)
        self._tasks: dict[str, TaskID] = {}
        self._total_steps, self._epochs, self._losses = 0, 0, ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    # --- callbacks ----------------------------------------------------------------------------------

    def on_run_start(self, directory: Path) -> None:
        self._say(f"run {_shown(directory)}")

    def on_warning(self, text: str) -> None:
        self._say(text)

    def on_stage(self, text: str) -> None:
        self._console.print(f"[dim]{text} …[/dim]")

    def on_encode(self, split: str, done: int, total: int) -> None:
        self._advance(f"encoding {split}", done, total)

    def on_resume(self, state: "TrainState", checkpoint: Path, changes: tuple[str, ...]) -> None:
        self._say(f"resuming from {checkpoint.name}{' with ' if changes else ''}{'; '.join(changes)}")

    def on_train_start(self, state: "TrainState", total_steps: int, epochs: int) -> None:
        self._total_steps, self._epochs = total_steps, epochs
        self._advance("training", state.step, total_steps)

    def on_step(self, state: "TrainState") -> None:
        self._advance("training", state.step, self._total_steps, self._losses)

    def on_log(self, state: "TrainState", metrics: Mapping[str, float]) -> None:
        self._losses = _line({name.removeprefix("train_"): value for name, value in metrics.items()})
        self._progress.update(self._tasks["training"], losses=self._losses)

    def on_epoch(self, state: "TrainState", results: EpochResults) -> None:
        for position, (split, result) in enumerate(results.items()):
            head = f"epoch {state.epoch}/{self._epochs}" if position == 0 else ""
            self._say(f"{head:<12} {split:<8} {_line(result.metrics)}")

    def on_early_stop(self, state: "TrainState", reason: str) -> None:
        self._say(f"the training ends early: {reason}")

    def on_episodes(self, evaluation: str, done: int, total: int) -> None:
        self._advance(f"episodes, {evaluation}", done, total)

    def on_simulation(self, evaluation: str, checkpoint: Path, metrics: Mapping[str, float]) -> None:
        shown = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.count("/") == 2}
        rate = "no valid episode"
        if "success" in shown:
            rate = f"success {shown['success']:.1%}  [{shown['success_low']:.1%}, {shown['success_high']:.1%}]"
        self._say(f"{evaluation:<12} {checkpoint.name}  {rate} of {shown['episodes']:.0f} episodes")

    def on_non_finite(self, step: int, reason: str) -> None:
        self._say(f"{reason}; the step was not taken")

    def on_health(self, finding: HealthFinding) -> None:
        self._say(f"health: {finding.line()}")

    def on_rollback(self, state: "TrainState", from_step: int) -> None:
        self._say(f"back from step {from_step} to the checkpoint of step {state.step}")

    def on_run_end(self, end: RunEnd) -> None:
        self._progress.stop()
        if end.status == "FINISHED":
            self._show_results(end)
            return
        self._print_undelivered(end)
        self._print_health(end)
        where = _shown(end.directory)
        remedy = f" · continue it: vlatrack run --resume {where}" if end.resumable else ""
        why = f" · {end.reason}" if end.reason is not None else ""
        self._say(f"{end.status} {where}{why}{remedy}")

    def _show_results(self, end: RunEnd) -> None:
        from vlatrack.reports.epoch_log import read_epoch_logs
        from vlatrack.reports.summary import first_last_table, render_summary

        if logs := read_epoch_logs(end.directory):
            self._console.print(render_summary(first_last_table(logs, horizon=end.horizon)))
        report = end.directory / "report"
        if has_figures := any(report.glob("*.png")):
            self._say(f"figures     {_shown(report)}")
        for backend in end.backends:
            state = "INCOMPLETE" if backend.undelivered or backend.dead_letters else "complete"
            self._say(f"{backend.label:<11} {state}, {backend.delivered} records; {backend.url or ''}")
            if backend.error:
                self._say(f"            {backend.error}")
        self._print_health(end)
        where = _shown(report if has_figures else end.directory)
        if any(backend.label.startswith("mlflow") for backend in end.backends):
            folder = _shown(end.directory.parent.parent)
            where = "vlatrack ui" if folder == "runs" else f"vlatrack ui --runs {folder}"
        self._say(f"FINISHED {_shown(end.directory)} · look at it: {where}")
        self._print_undelivered(end)

    def _print_health(self, end: RunEnd) -> None:
        if end.health is not None:
            self._say(f"health      {end.health}")

    def _print_undelivered(self, end: RunEnd) -> None:
        left = {backend.label: backend.undelivered for backend in end.backends if backend.undelivered}
        if left:
            what, remedy = f"{max(left.values())} records", f"`vlatrack sync {_shown(end.directory)}` delivers them"
            self._say(f"{what} not delivered to {', '.join(left)}; {remedy}")

    def _say(self, text: str) -> None:
        """Print one line without wrapping it, so that paths can be copied."""
        self._console.print(printable(text), soft_wrap=True, markup=False)

    def show_evaluation(self, evaluation: "Evaluation") -> None:
        """Print a table of all metrics, and the file they were written to."""
        self._progress.stop()
        splits = [split for split in ("val_ind", "val_ood") if f"{split}_closs" in evaluation.metrics]
        table = Table("metric", *splits, title=evaluation.checkpoint.name, title_justify="left", box=None)
        names = dict.fromkeys(
            name.removeprefix(f"{split}_")
            for split in splits
            for name in evaluation.metrics
            if name.startswith(f"{split}_")
        )
        for name in names:
            values = (evaluation.metrics.get(f"{split}_{name}") for split in splits)
            table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
        self._console.print(table)
        self._say(f"written to {_shown(evaluation.file)}, with tables and figures beside it")
        for share in () if evaluation.delivery is None else evaluation.delivery.backends:
            if share.undelivered:
                self._say(delivery_line(share))

    def _advance(self, name: str, done: int, total: int, losses: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, losses=losses)
        self._progress.update(self._tasks[name], completed=done, total=total, losses=losses)
        self._milestones.report(name, done, total, losses)


def _line(metrics: Mapping[str, float]) -> str:
    shown = ((name, metrics.get(name)) for name in _ON_BAR)
    return "  ".join(f"{name} {value:.4f}" for name, value in shown if value is not None)


def _shown(path: Path) -> str:
    """The path relative to the current directory, if it is inside it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

"""What a run looks like in a terminal: a progress bar with the losses, a line an epoch, a closing table."""

import logging
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from vlatrack.runner.evaluate import Evaluation
    from vlatrack.tracking.run import DeliveryReport

_ON_BAR = ("closs", "loss_ct", "z_loss", "l1_loss_action")


def prepare_process() -> None:
    """Settings that must stand before torch and its companions are imported."""
    # By default OpenMP's threads wait by spinning for long, which slows a CPU training severalfold as soon as
    # another process wants a core. This many turns (some ten microseconds) cost nothing when none does.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # The libraries' advice for their own users would tear the progress bar.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")


class TerminalDisplay:
    """Draws a run's progress (a ``vlatrack.runner.display.Display``) with rich."""

    def __init__(self, *, shown: bool = True) -> None:
        """`shown`: of several processes of one run, one draws."""
        self._console = Console(highlight=False, quiet=not shown)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,  # a log file gets the lines alone
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    # --- the runner's events -----------------------------------------------------------------------

    def started(self, directory: Path) -> None:
        self._say(f"run {directory}")

    def stage(self, text: str) -> None:
        self._console.print(f"[dim]{text} …[/dim]")

    def encoding(self, split: str, done: int, total: int) -> None:
        self._advance(f"encoding {split}", done, total)

    def training(self, step: int, total: int) -> None:
        self._advance("training", step, total)

    def losses(self, metrics: dict[str, float]) -> None:
        if "train_closs" in metrics and "training" in self._tasks:
            self._progress.update(self._tasks["training"], losses=_line("train", metrics))

    def epoch(self, number: int, total: int, metrics: dict[str, float]) -> None:
        splits = [split for split in ("train", "val_ind", "val_ood") if f"{split}_closs" in metrics]
        for position, split in enumerate(splits):
            head = f"epoch {number}/{total}" if position == 0 else ""
            self._say(f"{head:<12} {split:<8} {_line(split, metrics)}")

    def finished(self, directory: Path, delivery: "DeliveryReport", horizon: int) -> None:
        from vlatrack.reports.epoch_log import read_epoch_logs
        from vlatrack.reports.summary import first_last_table, render_summary

        self._progress.stop()
        if logs := read_epoch_logs(directory):
            self._console.print(render_summary(first_last_table(logs, horizon=horizon)))
        self._say(f"figures     {directory / 'report'}")
        for backend in delivery.backends:
            state = "INCOMPLETE" if backend.undelivered or backend.dead_letters else "complete"
            self._say(f"{backend.label:<11} {state}, {backend.delivered} records; {backend.url or ''}")
            if backend.error:
                self._say(f"            {backend.error}")
        where = str(directory / "report")
        if any(backend.label.startswith("mlflow") for backend in delivery.backends):
            folder = directory.parent.parent
            where = "vlatrack ui" if folder == Path("runs") else f"vlatrack ui --runs {folder}"
        self._say(f"FINISHED {directory} · look at it: {where}")
        self._name_the_undelivered(directory, delivery)

    def stopped(
        self, directory: Path, status: str, can_resume: bool, delivery: "DeliveryReport", reason: str | None
    ) -> None:
        self._progress.stop()
        self._name_the_undelivered(directory, delivery)
        remedy = f" · continue it: vlatrack run --resume {directory}" if can_resume else ""
        why = f" · {reason}" if reason is not None else ""
        self._say(f"{status} {directory}{why}{remedy}")

    def _name_the_undelivered(self, directory: Path, delivery: "DeliveryReport") -> None:
        left = {backend.label: backend.undelivered for backend in delivery.backends if backend.undelivered}
        if left:
            where = ", ".join(left)
            self._say(
                f"{max(left.values())} records not delivered to {where}; `vlatrack sync {directory}` delivers them"
            )

    def notice(self, text: str) -> None:
        """One line that a person should know of."""
        self._say(text)

    def _say(self, text: str) -> None:
        """One line, however narrow the terminal: paths stay whole for copying."""
        self._console.print(text, soft_wrap=True, markup=False)

    def show_evaluation(self, evaluation: "Evaluation") -> None:
        """A table of every measured number, and where it was written."""
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
        self._console.print(f"written to {evaluation.file}")

    def _advance(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, losses="")
        self._progress.update(self._tasks[name], completed=done, total=total)


def _line(split: str, metrics: dict[str, float]) -> str:
    shown = ((name, metrics.get(f"{split}_{name}")) for name in _ON_BAR)
    return "  ".join(f"{name} {value:.4f}" for name, value in shown if value is not None)

"""A run in the terminal: a progress bar with losses, a line per epoch, and a table at the end; in a log file lines."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from rich.console import Console
from rich.table import Table

from vlatrack.cli.bars import WIDTH_OF_FILES, Bars, fitting
from vlatrack.cli.delivery import delivery_line
from vlatrack.reports.summary import short_number
from vlatrack.runner.processes import quiet_libraries
from vlatrack.tracking.printable import printable
from vlatrack.tracking.user import provide_user
from vlatrack.training.callback import Callback, EpochResults, HealthFinding, RunEnd

if TYPE_CHECKING:
    from vlatrack.runner.evaluate import Evaluation
    from vlatrack.training.state import TrainState

_log = logging.getLogger(__name__)
_LOSSES = ("closs", "loss_ct", "z_loss", "l1_loss_action")
_TRAINING = "training"
_EPOCH_WIDTH = 13


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
        if not self._console.is_terminal:
            self._console.width = WIDTH_OF_FILES
        self._bars = Bars(self._console)
        self._total_steps, self._epochs = 0, 0
        self._losses: list[str] = []

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    # --- callbacks ----------------------------------------------------------------------------------

    def on_run_start(self, directory: Path) -> None:
        self._say(f"run {_shown(directory)}")

    def on_warning(self, text: str) -> None:
        self._say(text)

    def on_notice(self, text: str) -> None:
        self._say(text)

    def on_stage(self, text: str) -> None:
        self._console.print(f"[dim]{text} …[/dim]")

    def on_encode(self, split: str, done: int, total: int) -> None:
        self._bars.advance(f"encoding {split}", done, total, unit="frame")

    def on_resume(self, state: "TrainState", checkpoint: Path, changes: tuple[str, ...]) -> None:
        self._say(f"resuming from {checkpoint.name}{' with ' if changes else ''}{'; '.join(changes)}")

    def on_train_start(self, state: "TrainState", total_steps: int, epochs: int) -> None:
        self._total_steps, self._epochs = total_steps, epochs
        self.on_step(state)

    def on_step(self, state: "TrainState") -> None:
        self._bars.advance(_TRAINING, state.step, self._total_steps, unit="step", details=self._losses)

    def on_log(self, state: "TrainState", metrics: Mapping[str, float]) -> None:
        values = {name.removeprefix("train_"): value for name, value in metrics.items()}
        self._losses = _texts(values, short_number) or self._losses

    def on_evaluate(self, part: str, done: int, total: int, unit: str) -> None:
        self._bars.advance(f"evaluating {part}", done, total, unit=unit, is_brief=True)

    def on_epoch(self, state: "TrainState", results: EpochResults) -> None:
        self._bars.tell(_TRAINING)
        for position, (split, result) in enumerate(results.items()):
            head = f"epoch {state.epoch}/{self._epochs}" if position == 0 or not self._bars.is_live else ""
            self._say_losses(f"{head:<{_EPOCH_WIDTH - 1}} {split:<8}", _texts(result.metrics, "{:.4f}".format))

    def on_early_stop(self, state: "TrainState", reason: str) -> None:
        self._say(f"the training ends early: {reason}")

    def on_episodes(self, evaluation: str, done: int, total: int) -> None:
        self._bars.advance(f"episodes, {evaluation}", done, total, unit="episode")

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
        self._bars.stop()
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
            width = self._console.width if self._bars.is_live else None
            self._console.print(render_summary(first_last_table(logs, horizon=end.horizon), width=width))
        report = end.directory / "report"
        if has_figures := any(report.glob("*.png")):
            self._say(f"figures     {_shown(report)}")
        for backend in end.backends:
            state = "INCOMPLETE" if backend.undelivered or backend.dead_letters else "complete"
            self._say(f"{backend.label:<11} {state}, {backend.delivered} records; {backend.url or ''}")
            if backend.error:
                kept = "nothing is lost: the journal keeps it for `vlatrack sync`; why: " if backend.undelivered else ""
                self._say(f"            {kept}{backend.error}")
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

    def _say_losses(self, head: str, losses: Sequence[str]) -> None:
        """Print them in one line; in a terminal that is too narrow on more, none cut in the middle."""
        left, indent = list(losses), " " * len(head)
        while True:
            room = self._console.width - len(head) if self._bars.is_live else sys.maxsize
            line = list(fitting(left, room)) or left[:1]
            self._say("  ".join([head, *line]).rstrip())
            left, head = left[len(line) :], indent
            if not left:
                return

    def show_evaluation(self, evaluation: "Evaluation") -> None:
        """Print a table of all metrics, and the file they were written to."""
        self._bars.stop()
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


def _texts(metrics: Mapping[str, float], written: Callable[[float], str]) -> list[str]:
    return [f"{name} {written(metrics[name])}" for name in _LOSSES if name in metrics]


def _shown(path: Path) -> str:
    """The path relative to the current directory, if it is inside it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

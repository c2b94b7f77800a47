"""Evaluations in simulators while a run trains: which checkpoint is next, and what becomes of its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlatrack.builders.closed_loop import ClosedLoop
from vlatrack.errors import SimulatorError, VlatrackError
from vlatrack.evaluation.rows import TABLE
from vlatrack.metrics.schema import MetricSchema
from vlatrack.runner.closed_loop import EVENT
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.evaluator import EvaluatorJob, EvaluatorProcess
from vlatrack.spec.load import dump_spec
from vlatrack.tracking.journal.history import metric_history, standing_events
from vlatrack.tracking.privacy import private_directory, write_private
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import read_counters
from vlatrack.training.checkpoint.store import step_of
from vlatrack.training.early_stopping import EarlyStopping
from vlatrack.training.state import TrainState

FAILED = "simulation_failed"
"""The event in the journal for an evaluation that has no result."""
POLL_S = 0.5


@dataclass(frozen=True)
class _Running:
    loop: ClosedLoop
    checkpoint: Path
    process: EvaluatorProcess


class Simulations(Callback):
    """Evaluates checkpoints as they are written, one at a time, in a process of its own; on the main process alone.

    Of each evaluation at most one checkpoint waits: a newer one takes its place. The results go into the journal at the
    step of their checkpoint. Checkpoints that are evaluated, that wait, or that are the best so far are in use, and are
    kept.
    """

    def __init__(
        self,
        directory: RunDirectory,
        tracked: TrackedRun,
        loops: Sequence[ClosedLoop],
        schema: MetricSchema,
        callbacks: Sequence[Callback],
        *,
        best_metric: str,
        early_stopping: EarlyStopping | None,
        device: Literal["cpu", "cuda"],
    ) -> None:
        """
        Args:
            callbacks: are told of results and of evaluations that failed.
            device: where the policy acts, unless an evaluation says it.
        """
        self._directory, self._tracked, self._schema, self._callbacks = directory, tracked, schema, callbacks
        self._loops = {loop.label: loop for loop in loops}
        self._early_stopping, self._device = early_stopping, device
        self._best_metric = best_metric if any(best_metric in loop.metrics for loop in loops) else None
        self._best: tuple[int, float] | None = None  # step and value
        self._running: _Running | None = None
        self._waiting: dict[str, Path] = {}  # checkpoint by label
        self._recorded: set[tuple[str, int]] = set()  # label and step
        self._total_steps = 0

    def in_use(self) -> set[int]:
        """The steps of checkpoints that must not be deleted."""
        checkpoints = [*self._waiting.values(), *([] if self._running is None else [self._running.checkpoint])]
        return {step_of(checkpoint) for checkpoint in checkpoints} | ({self._best[0]} if self._best else set())

    # --- what the training tells -------------------------------------------------------------------

    def on_train_start(self, state: TrainState, total_steps: int, epochs: int) -> None:
        """Take up what an earlier part of the run has left."""
        self._total_steps = total_steps
        for loop in self._loops.values():
            write_private(self._file_of(loop), dump_spec(loop.evaluation))
        self._find_best(up_to=state.step)
        checkpoints = {path: read_counters(path) for path in self._directory.checkpoints.all()}
        saved_again = state.step if state.step_in_epoch > 0 and state.step >= total_steps else None
        recorded = [event.data["data"] for event in standing_events(self._directory.journal, EVENT)]
        for loop in self._loops.values():
            digest = loop.digest()
            due = [path for path, counters in checkpoints.items() if self._is_due(loop, counters)]
            for path in checkpoints:
                wanted = {"checkpoint": path.name, "name": loop.label, "digest": digest}.items()
                if any(wanted <= event.items() for event in recorded):
                    self._recorded.add((loop.label, step_of(path)))
                elif step_of(path) != saved_again and (self._folder_of(loop, path).exists() or path in due[-1:]):
                    self._submit(loop, path)

    def on_checkpoint(self, state: TrainState, path: Path, policy_sha256: str) -> None:
        """Evaluate the checkpoint as soon as the one before it is done, if it is due."""
        for loop in self._loops.values():
            if self._is_due(loop, state.counters()) and (loop.label, state.step) not in self._recorded:
                self._submit(loop, path)

    def on_step(self, state: TrainState) -> None:
        """Record a result that has come."""
        self._poll()

    def on_rollback(self, state: TrainState, from_step: int) -> None:
        """Leave the checkpoints that the training went back over."""
        self._waiting = {label: path for label, path in self._waiting.items() if step_of(path) <= state.step}
        if self._running is not None and step_of(self._running.checkpoint) > state.step:
            self._running.process.end()
            self._running = None
        self._recorded = {(label, step) for label, step in self._recorded if step <= state.step}
        self._find_best(up_to=state.step)
        self._poll()

    def finish(self) -> None:
        """Wait for what is being evaluated and for what waits, and say how far it is."""
        told = None
        self._poll()
        while (running := self._running) is not None:
            name = f"{running.loop.label} of {running.checkpoint.name}"
            for callback in self._callbacks:
                if told != name:
                    callback.on_stage(f"trained; waiting for the evaluation {name}")
                callback.on_episodes(name, _rows_in(Path(running.process.job.folder)), running.loop.episodes)
            told = name
            running.process.wait(POLL_S)
            self._poll()

    def close(self) -> None:
        """End what is being evaluated; a resumed run goes on with it."""
        self._waiting = {}
        if self._running is not None:
            self._running.process.end()
            self._running = None

    # --- one evaluation after the other ------------------------------------------------------------

    def _is_due(self, loop: ClosedLoop, counters: Mapping[str, int]) -> bool:
        if counters["step"] >= self._total_steps or counters.get("stopped_early"):
            return True
        at_the_end = counters["step_in_epoch"] == 0 and counters["epoch"] > 0
        return at_the_end and counters["epoch"] % loop.settings.every_epochs == 0

    def _submit(self, loop: ClosedLoop, checkpoint: Path) -> None:
        if (older := self._waiting.pop(loop.label, None)) is not None:
            self._tell(f"{older.name} is not evaluated in {loop.label}: {checkpoint.name} came while it waited")
        self._waiting[loop.label] = checkpoint
        self._poll()

    def _poll(self) -> None:
        """Record what is done, and begin with what waits."""
        if (running := self._running) is not None:
            status = running.process.poll()
            if status is None:
                return
            self._running = None
            running.process.end()
            try:
                if status != 0:
                    raise SimulatorError(running.process.reason())
                self._record(running)
            except (VlatrackError, OSError) as error:
                self._record_failure(running.loop, running.checkpoint, str(error))
        if self._waiting:
            label = next(iter(self._waiting))
            self._start(self._loops[label], self._waiting.pop(label))

    def _start(self, loop: ClosedLoop, checkpoint: Path) -> None:
        settings = loop.settings
        job = EvaluatorJob(
            checkpoint=str(checkpoint),
            evaluation=str(self._file_of(loop)),
            folder=str(self._folder_of(loop, checkpoint)),
            record=str(self._directory.evaluation / f"{loop.label}.record.json"),
            workers=settings.workers,
            videos=settings.videos,
            timeout_s=settings.timeout_s,
            device=self._device if settings.device == "auto" else settings.device,
        )
        try:
            self._running = _Running(loop, checkpoint, EvaluatorProcess(job, self._log_of(loop)))
        except OSError as error:
            self._record_failure(loop, checkpoint, str(error))

    def _record(self, running: _Running) -> None:
        record, step = running.process.record(), step_of(running.checkpoint)
        metrics = {name: value for result in record.results for name, value in result.metrics.items()}
        self._schema.check(metrics)
        reached = self._tracked.last_step
        record.write(self._tracked, self._directory.journal)
        self._tracked.last_step = reached
        self._recorded.add((running.loop.label, step))
        if self._best_metric is not None and self._best_metric in metrics:
            self._improve(step, metrics[self._best_metric])
            self._directory.checkpoints.write_best(None if self._best is None else self._best[0])
        if (early := self._early_stopping) is not None and early.metric in metrics:
            early.observe([(step, metrics[early.metric])])
        for callback in self._callbacks:
            callback.on_simulation(running.loop.label, running.checkpoint, metrics)

    def _record_failure(self, loop: ClosedLoop, checkpoint: Path, reason: str) -> None:
        log = self._log_of(loop)
        what = {"checkpoint": checkpoint.name, "name": loop.label, "reason": reason, "log": str(log)}
        self._tracked.event(FAILED, {"step": step_of(checkpoint), **what}, alert=True)
        self._tell(f"the evaluation {loop.label} of {checkpoint.name} failed: {reason}; its log: {log}")

    # --- small parts -------------------------------------------------------------------------------

    def _find_best(self, *, up_to: int) -> None:
        """The best of the checkpoints that are there."""
        self._best = None
        if self._best_metric is not None:
            there = {step_of(path) for path in self._directory.checkpoints.all()}
            for step, value in metric_history(self._directory.journal).get(self._best_metric, []):
                if step in there and step <= up_to:
                    self._improve(step, value)
        self._directory.checkpoints.write_best(None if self._best is None else self._best[0])

    def _improve(self, step: int, value: float) -> None:
        assert self._best_metric is not None
        if self._schema.is_better(self._best_metric, value, None if self._best is None else self._best[1]):
            self._best = step, value

    def _file_of(self, loop: ClosedLoop) -> Path:
        return private_directory(self._directory.evaluation) / f"{loop.label}.yaml"

    def _folder_of(self, loop: ClosedLoop, checkpoint: Path) -> Path:
        return self._directory.evaluation / f"{loop.label}-{checkpoint.name}"

    def _log_of(self, loop: ClosedLoop) -> Path:
        return self._directory.evaluation / f"{loop.label}.log"

    def _tell(self, text: str) -> None:
        for callback in self._callbacks:
            callback.on_warning(text)


def _rows_in(folder: Path) -> int:
    """The episodes that have ended."""
    try:
        return max(0, (folder / TABLE).read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0

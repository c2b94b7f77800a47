"""A worker of a sweep: begins trials, watches their processes, and records how they end."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from vlatrack.errors import DataError, VlatrackError
from vlatrack.metrics.schema import MetricSchema
from vlatrack.spec.sweep import Objective
from vlatrack.spec.sweep_file import Sweep
from vlatrack.sweep.child import Began, Ended, Reported, RunTask, run_in_child
from vlatrack.sweep.pruning import report
from vlatrack.sweep.storage import SweepFolder, telling_storage_errors
from vlatrack.sweep.study import SweepStudy
from vlatrack.sweep.trials import LiveTrial
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.lock import HEARTBEAT_INTERVAL_S
from vlatrack.tracking.run_files import RunFiles

_POLL_S = 0.5


@dataclass
class _Slot:
    """One of the trials that this worker trains side by side, and the process of its present run."""

    trial: LiveTrial
    seed: int
    process: SpawnProcess
    pipe: Connection


class StopRequests:
    """Counts the signals that ask this process to end; `received` is the first one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.untold = 0

    def __enter__(self) -> Self:
        wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
        numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        self.untold += 1


class SweepWorker:
    """Trains the trials of a sweep until there is none left for it.

    Args:
        changed: called after each beginning and end of a trial, with the number of its configuration's first trial.
    """

    def __init__(self, study: SweepStudy, changed: Callable[[int], None]) -> None:
        self._study, self._changed = study, changed
        self._slots: list[_Slot | None] = [None] * study.sweep.spec.parallel
        self._next_beat = 0.0
        self._stopping = False
        self.stopped_by: signal.Signals | None = None
        """The signal that ended the work before the sweep was done."""

    def run(self) -> None:
        """Work until every configuration has ended, or a signal asks for the end: then each run saves a checkpoint, and
        its trial waits for the next worker. A second Ctrl-C ends the runs without."""
        with StopRequests() as stop:
            try:
                while not (stop.received is not None and not self._busy()):
                    if stop.received is None and not self._fill() and not self._busy():
                        if self._study.is_done():
                            break
                        time.sleep(_POLL_S)  # other workers have the last trials, and may yet die
                    self._pass_on(stop)
                    self._listen()
                    self._beat()
            finally:
                self._abandon()
            self.stopped_by = stop.received

    def _busy(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot is not None]

    def _fill(self) -> bool:
        """Begin trials where there is room; returns whether one has begun."""
        began = False
        for place, slot in enumerate(self._slots):
            if slot is not None:
                continue
            trial = self._study.begin()
            if trial is None:
                break
            began = True
            self._go_on(place, trial)
            self._changed(trial.first_number)
        return began

    def _go_on(self, place: int, trial: LiveTrial) -> None:
        """Start the run of the next seed of a trial, or complete the trial if there is none."""
        left = [seed for seed in self._study.sweep.seeds if seed not in trial.values]
        if not left:
            self._study.complete(trial)
            self._slots[place] = None
            return
        pipe, of_child = multiprocessing.Pipe()
        task = self._task(place, trial, left[0])
        process = multiprocessing.get_context("spawn").Process(target=run_in_child, args=(task, of_child))
        process.start()
        of_child.close()
        self._slots[place] = _Slot(trial, left[0], process, pipe)

    def _task(self, place: int, trial: LiveTrial, seed: int) -> RunTask:
        sweep, folder = self._study.sweep, self._study.folder
        parallel = sweep.spec.parallel
        gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        earlier = trial.runs.get(seed)
        return RunTask(
            experiment=sweep.experiment_file,
            overrides=tuple(sweep.overrides(trial.settings, seed)),
            name=sweep.spec.name,
            runs=folder.runs,
            run=None if earlier is None else folder.run_dir(earlier),
            watched=sweep.spec.pruned_by if seed == sweep.seeds[0] else None,
            log=folder.log(trial.first_number, seed),
            threads=max(1, (os.cpu_count() or 1) // parallel),
            gpu=gpus[place % len(gpus)] if parallel > 1 and len(gpus) > 1 else None,
        )

    def _pass_on(self, stop: StopRequests) -> None:
        """Send the runs the signals that came."""
        while stop.untold:
            stop.untold -= 1
            for slot in self._busy():
                with suppress(ProcessLookupError):
                    os.kill(slot.process.pid or 0, stop.received or signal.SIGTERM)
        self._stopping = stop.received is not None

    def _listen(self) -> None:
        """Wait a moment for what the runs tell, and act on it."""
        pipes = {slot.pipe: place for place, slot in enumerate(self._slots) if slot is not None}
        for pipe in wait(list(pipes), timeout=_POLL_S) if pipes else ():
            assert isinstance(pipe, Connection)
            place = pipes[pipe]
            slot = self._slots[place]
            assert slot is not None, "the pipe is its own"
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                slot.process.join()
                message = Ended("FAILED", f"its process {_how(slot.process.exitcode)}")
            match message:
                case Began(run=run):
                    self._study.note_run(slot.trial, slot.seed, run)
                case Reported(epoch=epoch, value=value):
                    with suppress(BrokenPipeError):
                        pipe.send(report(slot.trial, epoch, value))
                case Ended():
                    self._end_run(place, slot, message)

    def _end_run(self, place: int, slot: _Slot, end: Ended) -> None:
        slot.process.join()
        slot.pipe.close()
        self._slots[place] = None
        trial, log = slot.trial, self._study.folder.log(slot.trial.first_number, slot.seed)
        if end.status == "FINISHED":
            try:
                run = self._study.folder.run_dir(trial.runs[slot.seed])
                values = objective_values(run, self._study.sweep.spec.objectives, self._study.schema)
            except VlatrackError as error:
                end = Ended("FAILED", str(error))
            else:
                self._study.note_values(trial, slot.seed, values)
                if self._stopping and len(trial.values) < len(self._study.sweep.seeds):
                    self._study.requeue(trial.number)
                else:
                    self._go_on(place, trial)
        of_seed = f"seed {slot.seed}: " if len(self._study.sweep.seeds) > 1 else ""
        if end.status == "PRUNED":
            self._study.prune(trial, end.reason or "")
        elif end.status == "KILLED" or (self._stopping and end.status != "FINISHED"):
            self._study.requeue(trial.number)
        elif end.status == "FAILED":
            self._study.fail(trial.number, f"{of_seed}{end.reason} (log: {log})")
        if self._slots[place] is None:
            self._changed(trial.first_number)

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_INTERVAL_S
            self._study.beat([slot.trial for slot in self._busy()])

    def _abandon(self) -> None:
        """End what still runs: something has failed here."""
        for slot in self._busy():
            slot.process.terminate()
        for slot in self._busy():
            slot.process.join()


def objective_values(run: Path | None, objectives: Sequence[Objective], schema: MetricSchema) -> list[float]:
    """What the journal of a finished run says of each objective.

    Raises:
        DataError: the run has not logged one of them, or its value is not finite.
    """
    if run is None or not RunFiles(run).journal.is_file():
        raise DataError(f"{run}: the run is gone")
    history = metric_history(RunFiles(run).journal)
    values = []
    for objective in objectives:
        logged = [value for _, value in history.get(objective.metric, [])]
        if not logged:
            raise DataError(f"{run}: has not logged {objective.metric}")
        value = logged[-1]
        if objective.take == "best":
            for other in logged:
                value = other if schema.is_better(objective.metric, other, value) else value
        if not math.isfinite(value):
            raise DataError(f"{run}: {objective.metric} is {value}")
        values.append(value)
    return values


def work_on(sweep: Sweep, folder: SweepFolder, changed: Callable[[SweepStudy, int | None], None]) -> SweepWorker:
    """Work on a sweep until it is done or a signal asks for the end.

    Args:
        changed: called with the number of each trial that begins or ends, and first and last with None.

    Raises:
        VlatrackError: the database cannot be used, or holds another sweep of this name.
    """
    folder.create()
    with telling_storage_errors(folder):
        study = SweepStudy(sweep, folder)
        changed(study, None)
        worker = SweepWorker(study, lambda number: changed(study, number))
        worker.run()
        changed(study, None)  # what other workers have done since
    return worker


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"was ended by {name}{' (is the memory full?)' if name == 'SIGKILL' else ''}"
    return f"ended with exit code {exitcode}"

"""One run of a trial in a process of its own: whatever becomes of it, the sweep goes on."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from vlatrack.errors import VlatrackError
from vlatrack.training.callback import Callback, EpochResults, RunEnd, StopTraining

if TYPE_CHECKING:
    from vlatrack.training.state import TrainState


@dataclass(frozen=True)
class RunTask:
    """What a child is to do."""

    experiment: Path
    overrides: tuple[str, ...]
    name: str  # of the sweep
    runs: Path
    run: Path | None  # a run of this configuration and seed that was not finished
    watched: str | None  # the metric that may end the trial
    log: Path
    threads: int
    gpu: str | None


@dataclass(frozen=True)
class Began:
    """The run directory exists."""

    run: Path


@dataclass(frozen=True)
class Reported:
    """The watched metric after an epoch, counted from 1; the child waits for the answer: whether to end."""

    epoch: int
    value: float


@dataclass(frozen=True)
class Ended:
    """The run is over: FINISHED, FAILED, KILLED, or PRUNED."""

    status: str
    reason: str | None = None


def run_in_child(task: RunTask, worker: Connection) -> None:
    """Carry out a task and tell the worker of it. The process ends with its worker, after a checkpoint.

    It is a process group of its own: Ctrl-C in a terminal reaches the worker alone, which passes it on once. A
    second one would end the run without a checkpoint.
    """
    os.setpgid(0, 0)
    output = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.setdefault("OMP_NUM_THREADS", str(task.threads))
    if task.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = task.gpu
    threading.Thread(target=_end_with_worker, daemon=True).start()
    sys.argv = ["vlatrack", "run", str(task.experiment), *task.overrides]  # what the run's manifest names
    with suppress(BrokenPipeError):
        worker.send(_outcome(task, worker))


def _end_with_worker() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker started this process"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(task: RunTask, worker: Connection) -> Ended:
    talk = _Talk(worker, task.watched)
    try:
        _train(task, talk)
    except KeyboardInterrupt:
        return Ended("KILLED", "interrupted from the keyboard")
    except SystemExit:
        return Ended("KILLED", "ended by a signal")
    except StopTraining as stop:
        return Ended("PRUNED", str(stop))
    except VlatrackError as error:
        return Ended("FAILED", str(error))
    except BaseException as error:
        import traceback

        traceback.print_exc()  # into the log of the trial
        return Ended("FAILED", f"{type(error).__name__}: {error}")
    return Ended("FINISHED")


def _train(task: RunTask, talk: "_Talk") -> None:
    from vlatrack.runner.processes import quiet_libraries

    quiet_libraries()  # before they are imported
    from vlatrack.runner.directory import RunDirectory
    from vlatrack.runner.run import resume_run, run_experiment
    from vlatrack.runner.unfinished import has_checkpoint
    from vlatrack.spec.load import load_spec
    from vlatrack.spec.sweep_file import grouped

    spec = grouped(load_spec(task.experiment, task.overrides), task.name)
    if task.run is not None and has_checkpoint(RunDirectory(task.run)):
        talk.send(Began(task.run))
        resume_run(task.run, spec=spec, command=sys.argv, callbacks=[talk])
    else:
        run_experiment(spec, runs=task.runs, overrides=task.overrides, command=sys.argv, callbacks=[talk])


class _Talk(Callback):
    """Tells the worker how the run goes, and ends it where the worker says so."""

    def __init__(self, worker: Connection, watched: str | None) -> None:
        self._worker, self._watched = worker, watched
        self._epochs: dict[int, int] = {}  # by the step of the end of the epoch

    def send(self, message: Began | Reported) -> None:
        self._worker.send(message)

    def on_run_start(self, directory: Path) -> None:
        self.send(Began(directory))

    def on_warning(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def on_epoch(self, state: "TrainState", results: EpochResults) -> None:
        from vlatrack.metrics.schema import split_and_name

        self._epochs[state.step] = state.epoch
        losses = [f"{split} closs {result.metrics['closs']:.4f}" for split, result in results.items()]
        print(f"epoch {state.epoch} (step {state.step}): {', '.join(losses)}", flush=True)
        if self._watched is not None:
            split, name = split_and_name(self._watched)
            if split in results and (value := results[split].metrics.get(name)) is not None:
                self._ask(state.epoch, value)

    def on_simulation(self, evaluation: str, checkpoint: Path, metrics: Mapping[str, float]) -> None:
        from vlatrack.training.checkpoint.store import step_of

        epoch = self._epochs.get(step_of(checkpoint))
        if self._watched is not None and self._watched in metrics and epoch is not None:
            self._ask(epoch, metrics[self._watched])

    def on_non_finite(self, step: int, reason: str) -> None:
        print(reason, flush=True)

    def on_run_end(self, end: RunEnd) -> None:
        print(f"{end.status} {end.directory}", flush=True)

    def _ask(self, epoch: int, value: float) -> None:
        try:
            self._worker.send(Reported(epoch, value))
            ends = self._worker.recv()
        except (EOFError, OSError):
            return  # the worker is gone, which the thread that waits for that sees as well
        if ends:
            raise StopTraining(f"pruned after epoch {epoch}: {self._watched} {value:.4g}")

"""The trials of a sweep in Optuna's database: which is next, which have ended, and which have lost their worker."""

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrack.errors import SpecError, TrackerError
from vlatrack.metrics.schema import Direction
from vlatrack.spec.sweep_file import Sweep
from vlatrack.sweep.definition import check_definition, schema_of
from vlatrack.sweep.pruning import PruningStudy, name_beside
from vlatrack.sweep.samplers import build_pruner, build_sampler, next_of_grid
from vlatrack.sweep.storage import SweepFolder, open_storage
from vlatrack.sweep.trials import (
    BEAT,
    DEATHS,
    FIRST,
    LEFT_OUT,
    PRUNING,
    REASON,
    RETRY_OF,
    RUN,
    VALUES,
    WORKER,
    LiveTrial,
    by_seed,
    first_number_of,
    params_of,
    suggest,
    worker_of,
)
from vlatrack.tracking.lock import ALIVE_S, process_here

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

MOST_DEATHS = 3
"""So many workers may die with the same configuration; it may be what killed them."""


class SweepStudy:
    """The database of one sweep, as a worker uses it."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        """Open the study, or begin it.

        Raises:
            VlatrackError: the database cannot be opened, or holds another sweep of this name.
        """
        import optuna

        self.sweep, self.folder = sweep, folder
        self.schema = schema_of(sweep)
        self.directions = [self._direction(objective.metric) for objective in sweep.spec.objectives]
        self._seen: dict[int, tuple[object, float]] = {}  # beats of workers elsewhere, and when they were new
        self._beats = 0
        lock = folder.lock()
        try:
            storage = open_storage(folder)
            make = optuna.create_study
            self.study = make(
                storage=storage, study_name=sweep.spec.name, directions=self.directions, load_if_exists=True
            )
            check_definition(self.study, sweep)
            self._pruning = self._open_pruning(storage)
        finally:
            lock.release()

    def _direction(self, metric: str) -> str:
        if problem := self.schema.why_no_objective(metric):
            raise SpecError(f"{self.sweep.file}: {problem}")
        return "minimize" if self.schema[metric].direction is Direction.LOWER else "maximize"

    def _open_pruning(self, storage: "RDBStorage") -> PruningStudy | None:
        spec, metric = self.sweep.spec, self.sweep.spec.pruned_by
        if spec.pruner is None or metric is None:
            return None
        pruner = build_pruner(spec.pruner, epochs=self.sweep.experiment.train.epochs)
        if [objective.metric for objective in spec.objectives] == [metric]:
            return PruningStudy.same(self.study, pruner)
        return PruningStudy.beside(spec.name, storage, self._direction(metric), pruner)

    def trials(self) -> list["FrozenTrial"]:
        """The trials that count, in the order in which their configurations were begun for the first time: without
        those that were begun anew, and surplus ones."""
        every = self.study.get_trials(deepcopy=False)
        return sorted((trial for trial in every if LEFT_OUT not in trial.user_attrs), key=first_number_of)

    def is_done(self) -> bool:
        """Whether every configuration has ended."""
        trials = self.trials()
        return len(trials) >= self.sweep.trials and all(trial.state.is_finished() for trial in trials)

    def begin(self) -> LiveTrial | None:
        """The next configuration: one whose worker has died or stopped, or else a new one; None if there is none."""
        lock = self.folder.lock()
        try:
            self._take_over()
            return self._begin()
        finally:
            lock.release()

    def _begin(self) -> LiveTrial | None:
        from optuna.trial import TrialState

        trials = self.trials()
        if not any(trial.state == TrialState.WAITING for trial in trials):
            if len(trials) >= self.sweep.trials:
                return None
            if self.sweep.grid_size is not None:
                self.study.enqueue_trial(next_of_grid(self.sweep.axes, [params_of(trial) for trial in trials]))
        trial = self.study.ask()
        holder = process_here(os.getpid())
        assert holder is not None, "this process lives"
        trial.set_user_attr(WORKER, dataclasses.asdict(holder))
        # A sampler of its own for each trial: a sweep that is stopped goes on as if it had not been.
        self.study.sampler = build_sampler(self.sweep.spec.sampler, trial.number)
        settings = {axis.path: suggest(trial, axis) for axis in self.sweep.axes}
        attributes = trial.user_attrs
        first_number = int(attributes.get(FIRST, trial.number))
        if self._is_surplus(first_number, trial.params):
            self._leave_out(trial.number)
            return None
        live = LiveTrial(
            trial.number,
            first_number,
            settings,
            runs=dict(by_seed(attributes, RUN)),
            values=dict(by_seed(attributes, VALUES)),
            watched=None if self._pruning is None else self._pruning.watched(trial),
        )
        if self._pruning is not None:
            self._pruning.repeat_reports(live, attributes.get(RETRY_OF))
        return live

    def _is_surplus(self, first_number: int, params: Mapping[str, Any]) -> bool:
        """Whether workers on other machines, which have other locks, have begun the last trials at the same time."""
        earlier = [trial for trial in self.trials() if first_number_of(trial) < first_number]
        twice = self.sweep.grid_size is not None and any(trial.params == params for trial in earlier)
        return twice or len(earlier) >= self.sweep.trials

    def note_run(self, trial: LiveTrial, seed: int, run: Path) -> None:
        trial.runs[seed] = run.resolve().relative_to(self.folder.runs.resolve()).as_posix()
        self._set(trial.number, f"{RUN}{seed}", trial.runs[seed])

    def note_values(self, trial: LiveTrial, seed: int, values: Sequence[float]) -> None:
        trial.values[seed] = list(values)
        self._set(trial.number, f"{VALUES}{seed}", trial.values[seed])

    def complete(self, trial: LiveTrial) -> list[float]:
        """The trial is done: its objectives are the means over its seeds."""
        values = [math.fsum(of_a_seed) / len(trial.values) for of_a_seed in zip(*trial.values.values(), strict=True)]
        self.study.tell(trial.number, values)
        self._tell_pruning(trial.number)
        return values

    def prune(self, trial: LiveTrial, reason: str) -> None:
        from optuna.trial import TrialState

        self._set(trial.number, REASON, reason)
        self.study.tell(trial.number, state=TrialState.PRUNED)
        self._tell_pruning(trial.number, pruned=True)

    def fail(self, number: int, reason: str) -> None:
        from optuna.trial import TrialState

        self._set(number, REASON, reason)
        self.study.tell(number, state=TrialState.FAIL)
        self._tell_pruning(number, pruned=True)

    def requeue(self, number: int, *, died: bool = False) -> None:
        """Let any worker go on with a configuration; its complete seeds and its last run are kept."""
        trial = self._frozen(number)
        deaths = int(trial.user_attrs.get(DEATHS, 0)) + died
        if deaths >= MOST_DEATHS:
            self.fail(number, f"its worker died {deaths} times")
            return
        kept = {name: value for name, value in trial.user_attrs.items() if name.startswith((RUN, VALUES, PRUNING))}
        self._leave_out(number)
        kept |= {DEATHS: deaths, RETRY_OF: number, FIRST: first_number_of(trial)}
        self.study.enqueue_trial(params_of(trial), user_attrs=kept)

    def beat(self, trials: Sequence[LiveTrial]) -> None:
        """Say that this worker lives, to those on other machines."""
        self._beats += 1
        for trial in trials:
            self._set(trial.number, BEAT, self._beats)

    def lives(self, trial: "FrozenTrial") -> bool:
        """Whether the worker of a running trial is alive: on this machine its process, elsewhere its beats say so."""
        holder = worker_of(trial)
        if holder.is_here:
            return holder.is_alive
        beat, now = trial.user_attrs.get(BEAT), time.monotonic()
        seen, since = self._seen.get(trial.number, (None, -math.inf))
        if since == -math.inf or seen != beat:
            self._seen[trial.number] = (beat, now)
            return True
        return now - since < ALIVE_S

    def _take_over(self) -> None:
        from optuna.trial import TrialState

        for trial in self.trials():
            if trial.state == TrialState.RUNNING and not self.lives(trial):
                with contextlib.suppress(ValueError):  # another machine was faster
                    self.requeue(trial.number, died=True)

    def _leave_out(self, number: int) -> None:
        from optuna.trial import TrialState

        self._set(number, LEFT_OUT, True)
        self.study.tell(number, state=TrialState.FAIL)

    def _tell_pruning(self, number: int, *, pruned: bool = False) -> None:
        if self._pruning is not None:
            self._pruning.tell(self._frozen(number), pruned=pruned)

    def _frozen(self, number: int) -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[number]

    def _set(self, number: int, name: str, value: object) -> None:
        self.study._storage.set_trial_user_attr(self._frozen(number)._trial_id, name, value)


def drop_sweep(folder: SweepFolder) -> None:
    """Delete a sweep from its database, and its folder; its runs stay.

    Raises:
        TrackerError: a worker of this machine is at it.
    """
    import optuna
    from optuna.trial import TrialState

    lock = folder.lock()
    try:
        storage = open_storage(folder)
        names = {folder.name, name_beside(folder.name)} & {study.study_name for study in storage.get_all_studies()}
        for name in sorted(names):
            study = optuna.load_study(study_name=name, storage=storage)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if (worker := worker_of(trial)).is_alive:
                    raise TrackerError(f"{folder.path}: {worker} is working on it; stop it first")
        for name in sorted(names):
            optuna.delete_study(study_name=name, storage=storage)
    finally:
        lock.release()
    shutil.rmtree(folder.path)

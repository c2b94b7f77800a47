"""The trials of a sweep in Optuna's database: which is next, which have ended, and which have lost their worker."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrack.errors import SpecError, TrackerError
from vlatrack.metrics.schema import Direction, MetricSchema
from vlatrack.spec.identity import Difference, differences, flatten, matches
from vlatrack.spec.sweep import Setting
from vlatrack.spec.sweep_file import Axis, Sweep, sweep_schema
from vlatrack.sweep.samplers import build_pruner, build_sampler, next_of_grid
from vlatrack.sweep.storage import SweepFolder, open_storage
from vlatrack.tracking.lock import ALIVE_S, Holder, process_here

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

MOST_DEATHS = 3
"""So many workers may die with the same configuration; it may be what killed them."""

_OF_THE_FILE = ("trials", "parallel")
_OF_A_WORKER = (
    "tracking.*",
    "train.device",
    "train.workers",
    "data.*.path",
    "backbone.checkpoint",
    "tokenizer.checkpoint",
)
_DEFINITION, _WORKER, _BEAT, _REASON, _DEATHS = "definition", "worker", "beat", "reason", "deaths"
_LEFT_OUT, _PRUNING, _RETRY_OF, _FIRST = "left_out", "pruning_trial", "retry_of", "first_number"
_RUN, _VALUES = "run ", "values "


@dataclass
class LiveTrial:
    """A configuration that this worker trains."""

    number: int
    first_number: int
    """that which the configuration had when it was begun for the first time"""
    settings: Mapping[str, Setting]
    runs: dict[int, str]
    """by seed, from the runs folder"""
    values: dict[int, list[float]]
    """the objectives of each seed whose run is complete"""
    watched: "Trial | None"
    """of the study in which it may be pruned"""
    reported: set[int] = field(default_factory=set)
    """epochs whose value the pruner knows"""


class SweepStudy:
    """The database of one sweep, as a worker uses it."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        """Open the study, or begin it.

        Raises:
            VlatrackError: the database cannot be opened, or holds another sweep of this name.
        """
        import optuna

        self.sweep, self.folder = sweep, folder
        self.schema = _schema_of(sweep)
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
            self._check_definition()
            self._pruning = self._pruning_study(storage)
        finally:
            lock.release()

    def _direction(self, metric: str) -> str:
        if problem := self.schema.why_no_objective(metric):
            raise SpecError(f"{self.sweep.file}: {problem}")
        return "minimize" if self.schema[metric].direction is Direction.LOWER else "maximize"

    def _check_definition(self) -> None:
        definition = _definition(self.sweep)
        stored = self.study.user_attrs.get(_DEFINITION)
        if stored is None:
            self.study.set_user_attr(_DEFINITION, definition)
            return
        changed = _changes(stored, definition)
        if changed:
            raise SpecError(
                f"{self.sweep.file}: the sweep {self.sweep.spec.name} has begun with other settings "
                f"({'; '.join(map(str, changed))}): undo it, give it another name, or remove the sweep with --drop"
            )

    def _pruning_study(self, storage: Any) -> "Study | None":
        """Where the pruner compares: the study itself if it watches the only objective, else one beside it. Optuna
        prunes in studies of one objective alone."""
        import optuna

        spec, metric = self.sweep.spec, self.sweep.spec.pruned_by
        if spec.pruner is None or metric is None:
            return None
        pruner = build_pruner(spec.pruner, epochs=self.sweep.experiment.train.epochs)
        if [objective.metric for objective in spec.objectives] == [metric]:
            self.study.pruner = pruner
            return self.study
        return optuna.create_study(
            storage=storage,
            study_name=_beside(spec.name),
            direction=self._direction(metric),
            pruner=pruner,
            load_if_exists=True,
        )

    def trials(self) -> list["FrozenTrial"]:
        """The trials that count, in the order in which their configurations were begun for the first time: without
        those that were begun anew, and surplus ones."""
        every = self.study.get_trials(deepcopy=False)
        return sorted((trial for trial in every if _LEFT_OUT not in trial.user_attrs), key=first_number_of)

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
                self.study.enqueue_trial(next_of_grid(self.sweep.axes, [_params(trial) for trial in trials]))
        trial = self.study.ask()
        holder = process_here(os.getpid())
        assert holder is not None, "this process lives"
        trial.set_user_attr(_WORKER, dataclasses.asdict(holder))
        # A sampler of its own for each trial: a sweep that is stopped goes on as if it had not been.
        self.study.sampler = build_sampler(self.sweep.spec.sampler, trial.number)
        settings = {axis.path: _suggest(trial, axis) for axis in self.sweep.axes}
        attributes = trial.user_attrs
        first_number = int(attributes.get(_FIRST, trial.number))
        if self._is_surplus(first_number, trial.params):
            self._leave_out(trial.number)
            return None
        live = LiveTrial(
            trial.number,
            first_number,
            settings,
            runs=dict(_by_seed(attributes, _RUN)),
            values=dict(_by_seed(attributes, _VALUES)),
            watched=self._watched(trial),
        )
        self._repeat_reports(live, attributes.get(_RETRY_OF))
        return live

    def _is_surplus(self, first_number: int, params: Mapping[str, Any]) -> bool:
        """Whether workers on other machines, which have other locks, have begun the last trials at the same time."""
        earlier = [trial for trial in self.trials() if first_number_of(trial) < first_number]
        twice = self.sweep.grid_size is not None and any(trial.params == params for trial in earlier)
        return twice or len(earlier) >= self.sweep.trials

    def _watched(self, trial: "Trial") -> "Trial | None":
        import optuna

        if self._pruning is None or self._pruning is self.study:
            return trial if self._pruning is not None else None
        number = trial.user_attrs.get(_PRUNING)
        if number is None:
            beside = self._pruning.ask()
            trial.set_user_attr(_PRUNING, beside.number)
            return beside
        (found,) = [old for old in self._pruning.get_trials(deepcopy=False) if old.number == number]
        return optuna.trial.Trial(self._pruning, found._trial_id)

    def _repeat_reports(self, live: LiveTrial, retry_of: int | None) -> None:
        """A trial that goes on has been seen by the pruner already."""
        if live.watched is None:
            return
        study = live.watched.study
        known = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        live.reported |= known[live.watched.number].intermediate_values.keys()
        if study is self.study and retry_of is not None:
            for epoch, value in known[retry_of].intermediate_values.items():
                live.watched.report(value, epoch)
                live.reported.add(epoch)

    def note_run(self, trial: LiveTrial, seed: int, run: Path) -> None:
        trial.runs[seed] = run.resolve().relative_to(self.folder.runs.resolve()).as_posix()
        self._set(trial.number, f"{_RUN}{seed}", trial.runs[seed])

    def note_values(self, trial: LiveTrial, seed: int, values: Sequence[float]) -> None:
        trial.values[seed] = list(values)
        self._set(trial.number, f"{_VALUES}{seed}", trial.values[seed])

    def report(self, trial: LiveTrial, epoch: int, value: float) -> bool:
        """Tell the pruner the watched metric after an epoch; returns whether the trial is to end."""
        if trial.watched is None or epoch in trial.reported:
            return False
        trial.reported.add(epoch)
        trial.watched.report(value if math.isfinite(value) else math.nan, epoch)
        return trial.watched.should_prune()

    def complete(self, trial: LiveTrial) -> list[float]:
        """The trial is done: its objectives are the means over its seeds."""
        values = [math.fsum(of_a_seed) / len(trial.values) for of_a_seed in zip(*trial.values.values(), strict=True)]
        self.study.tell(trial.number, values)
        self._tell_pruner(trial.number)
        return values

    def prune(self, trial: LiveTrial, reason: str) -> None:
        from optuna.trial import TrialState

        self._set(trial.number, _REASON, reason)
        self.study.tell(trial.number, state=TrialState.PRUNED)
        self._tell_pruner(trial.number, pruned=True)

    def fail(self, number: int, reason: str) -> None:
        from optuna.trial import TrialState

        self._set(number, _REASON, reason)
        self.study.tell(number, state=TrialState.FAIL)
        self._tell_pruner(number, pruned=True)

    def requeue(self, number: int, *, died: bool = False) -> None:
        """Let any worker go on with a configuration; its complete seeds and its last run are kept."""
        trial = self._frozen(number)
        deaths = int(trial.user_attrs.get(_DEATHS, 0)) + died
        if deaths >= MOST_DEATHS:
            self.fail(number, f"its worker died {deaths} times")
            return
        kept = {name: value for name, value in trial.user_attrs.items() if name.startswith((_RUN, _VALUES, _PRUNING))}
        self._leave_out(number)
        kept |= {_DEATHS: deaths, _RETRY_OF: number, _FIRST: first_number_of(trial)}
        self.study.enqueue_trial(_params(trial), user_attrs=kept)

    def beat(self, trials: Sequence[LiveTrial]) -> None:
        """Say that this worker lives, to those on other machines."""
        self._beats += 1
        for trial in trials:
            self._set(trial.number, _BEAT, self._beats)

    def lives(self, trial: "FrozenTrial") -> bool:
        """Whether the worker of a running trial is alive: on this machine its process, elsewhere its beats say so."""
        holder = worker_of(trial)
        if holder.is_here:
            return holder.is_alive
        beat, now = trial.user_attrs.get(_BEAT), time.monotonic()
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

        self._set(number, _LEFT_OUT, True)
        self.study.tell(number, state=TrialState.FAIL)

    def _tell_pruner(self, number: int, *, pruned: bool = False) -> None:
        from optuna.trial import TrialState

        beside = self._frozen(number).user_attrs.get(_PRUNING)
        if self._pruning is None or beside is None:
            return
        (trial,) = [trial for trial in self._pruning.get_trials(deepcopy=False) if trial.number == beside]
        last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
        if pruned or last is None or not math.isfinite(last):
            self._pruning.tell(beside, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self._pruning.tell(beside, last, skip_if_finished=True)

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
        names = {folder.name, _beside(folder.name)} & {study.study_name for study in storage.get_all_studies()}
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


def worker_of(trial: "FrozenTrial") -> Holder:
    """The process that has begun a trial; an unknown one if the database does not say."""
    try:
        return Holder(**trial.user_attrs.get(_WORKER, {}))
    except TypeError:
        return Holder()


def first_number_of(trial: "FrozenTrial") -> int:
    """The number of the first trial with this configuration; it may have been begun anew since."""
    return int(trial.user_attrs.get(_FIRST, trial.number))


def reason_of(trial: "FrozenTrial") -> str | None:
    """Why a trial was pruned or has failed."""
    reason = trial.user_attrs.get(_REASON)
    return None if reason is None else str(reason)


def runs_of(trial: "FrozenTrial") -> dict[int, str]:
    """The runs of a trial by seed, as paths from the runs folder."""
    return {seed: str(run) for seed, run in _by_seed(trial.user_attrs, _RUN)}


def settings_of(trial: "FrozenTrial", axes: Sequence[Axis]) -> dict[str, Setting]:
    """The values of a trial by their paths; without those that it was not given yet."""
    params = _params(trial)
    return {axis.path: _value(axis, params[axis.path]) for axis in axes if axis.path in params}


def _beside(name: str) -> str:
    """The study in which a sweep compares what its pruner watches; no sweep can have this name."""
    return f"{name}/pruning"


def _schema_of(sweep: Sweep) -> MetricSchema:
    metrics = [objective.metric for objective in sweep.spec.objectives]
    metrics += [] if sweep.spec.pruned_by is None else [sweep.spec.pruned_by]
    if not sweep.experiment.loss.terms:
        return sweep_schema(sweep.experiment, metrics)
    from vlatrack.builders.closed_loop import load_closed_loops, simulated_metrics
    from vlatrack.builders.policy import build_schema

    return build_schema(sweep.experiment, simulated_metrics(load_closed_loops(sweep.experiment)))


def _definition(sweep: Sweep) -> dict[str, Any]:
    settings = {path: value for path, value in flatten(sweep.spec).items() if path not in _OF_THE_FILE}
    experiment = {path: value for path, value in flatten(sweep.experiment).items() if not matches(path, _OF_A_WORKER)}
    return {"sweep": settings, "experiment": experiment}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    of_sweep = differences(before["sweep"], after["sweep"])
    # What the overrides change is told of once, as it stands in the sweep's file.
    told = {change.path.removeprefix("overrides.") for change in of_sweep}
    of_experiment = differences(before["experiment"], after["experiment"])
    return [*of_sweep, *(change for change in of_experiment if change.path not in told)]


def _suggest(trial: "Trial", axis: Axis) -> Setting:
    if axis.dimension.choices is not None:
        # As texts: Optuna takes no lists, and cannot tell 1 from true.
        return _value(
            axis, trial.suggest_categorical(axis.path, [json.dumps(value) for value in axis.dimension.choices])
        )
    low, high = axis.bounds
    step, is_log = axis.dimension.step, axis.dimension.log is not None
    if axis.number is int:
        return trial.suggest_int(axis.path, int(low), int(high), step=int(step or 1), log=is_log)
    return trial.suggest_float(axis.path, low, high, step=step, log=is_log)


def _params(trial: "FrozenTrial") -> dict[str, Any]:
    """The parameters of a trial; of one that waits, those that it will have."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _value(axis: Axis, param: Any) -> Setting:
    return json.loads(param) if axis.dimension.choices is not None else param


def _by_seed(attributes: Mapping[str, Any], prefix: str) -> Iterator[tuple[int, Any]]:
    for name, value in attributes.items():
        if name.startswith(prefix):
            yield int(name.removeprefix(prefix)), value

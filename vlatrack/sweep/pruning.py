"""Ending trials that promise little: what the pruner of a sweep compares, and where.

Optuna prunes in studies of one objective alone, and by that objective. So a sweep whose pruner watches another metric,
or that has several objectives, has a second study beside its own, in which each of its trials has a counterpart.
"""

import math
from typing import TYPE_CHECKING, Self

from vlatrack.sweep.trials import PRUNING, LiveTrial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial


class PruningStudy:
    """The study in which the pruner compares: that of the sweep, or one beside it."""

    def __init__(self, study: "Study", *, is_beside: bool) -> None:
        """Use `same` or `beside`."""
        self._study, self._is_beside = study, is_beside

    @classmethod
    def same(cls, study: "Study", pruner: "BasePruner") -> Self:
        """The sweep's own, whose only objective is what the pruner watches."""
        study.pruner = pruner
        return cls(study, is_beside=False)

    @classmethod
    def beside(cls, name: str, storage: "RDBStorage", direction: str, pruner: "BasePruner") -> Self:
        """Open or begin the one beside the study of the sweep with this name."""
        import optuna

        study = optuna.create_study(
            storage=storage,
            study_name=name_beside(name),
            direction=direction,
            pruner=pruner,
            load_if_exists=True,
        )
        return cls(study, is_beside=True)

    def watched(self, trial: "Trial") -> "Trial":
        """What a trial of the sweep reports to: itself, or its counterpart, which it may have from an earlier start."""
        import optuna

        if not self._is_beside:
            return trial
        number = trial.user_attrs.get(PRUNING)
        if number is None:
            counterpart = self._study.ask()
            trial.set_user_attr(PRUNING, counterpart.number)
            return counterpart
        return optuna.trial.Trial(self._study, self._frozen(number)._trial_id)

    def repeat_reports(self, live: LiveTrial, retry_of: int | None) -> None:
        """Note what the pruner knows of a trial that goes on, the trial numbered ``retry_of`` until now."""
        assert live.watched is not None, "there is a pruner"
        live.reported |= self._frozen(live.watched.number).intermediate_values.keys()
        if not self._is_beside and retry_of is not None:
            for epoch, value in self._frozen(retry_of).intermediate_values.items():
                live.watched.report(value, epoch)
                live.reported.add(epoch)

    def tell(self, trial: "FrozenTrial", *, pruned: bool) -> None:
        """Let the counterpart of a trial of the sweep end with it."""
        from optuna.trial import TrialState

        number = trial.user_attrs.get(PRUNING)
        if not self._is_beside or number is None:
            return
        counterpart = self._frozen(number)
        last = None if counterpart.last_step is None else counterpart.intermediate_values[counterpart.last_step]
        if pruned or last is None or not math.isfinite(last):
            self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(number, last, skip_if_finished=True)

    def _frozen(self, number: int) -> "FrozenTrial":
        return self._study.get_trials(deepcopy=False)[number]


def name_beside(name: str) -> str:
    """The name of the study beside that of a sweep; no sweep can have it."""
    return f"{name}/pruning"


def report(trial: LiveTrial, epoch: int, value: float) -> bool:
    """Tell the pruner the watched metric after an epoch, counted from 1; returns whether the trial is to end."""
    if trial.watched is None or epoch in trial.reported:
        return False
    trial.reported.add(epoch)
    trial.watched.report(value if math.isfinite(value) else math.nan, epoch)
    return trial.watched.should_prune()

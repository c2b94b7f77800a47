"""What makes a sweep the one that it is: a database holds the trials of one, and no others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlatrack.errors import SpecError
from vlatrack.metrics.schema import MetricSchema
from vlatrack.spec.identity import Difference, differences, flatten, matches
from vlatrack.spec.sweep_file import Sweep, sweep_schema

if TYPE_CHECKING:
    from optuna import Study

_OF_THE_FILE = ("trials", "parallel")
_OF_A_WORKER = (
    "tracking.*",
    "train.device",
    "train.workers",
    "data.*.path",
    "backbone.checkpoint",
    "tokenizer.checkpoint",
)
_DEFINITION = "definition"


def check_definition(study: "Study", sweep: Sweep) -> None:
    """Check that the study holds trials of this sweep; a new study is marked as such.

    Raises:
        SpecError: the sweep or its experiment has changed since; the message names every change.
    """
    definition = _definition(sweep)
    stored = study.user_attrs.get(_DEFINITION)
    if stored is None:
        study.set_user_attr(_DEFINITION, definition)
        return
    changed = _changes(stored, definition)
    if changed:
        raise SpecError(
            f"{sweep.file}: the sweep {sweep.spec.name} has begun with other settings "
            f"({'; '.join(map(str, changed))}): undo it, give it another name, or remove the sweep with --drop"
        )


def schema_of(sweep: Sweep) -> MetricSchema:
    """The metrics that runs of the sweep log."""
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

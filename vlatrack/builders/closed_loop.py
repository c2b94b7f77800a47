"""From the spec of an experiment to the evaluations in simulators beside its training."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlatrack.builders.simulator import build_simulator, check_tasks, known_tasks
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SIMULATION, MetricSchema, simulation_metrics, simulation_names
from vlatrack.spec.evaluation import EvaluationSpec, set_digest
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_evaluation
from vlatrack.spec.training import ClosedLoopSpec


@dataclass(frozen=True)
class ClosedLoop:
    """One of these evaluations."""

    settings: ClosedLoopSpec
    evaluation: EvaluationSpec

    @property
    def label(self) -> str:
        """The name of its results."""
        return self.evaluation.label

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all that it can measure."""
        return tuple(simulation_names(self.evaluation.metric_group, map(str, self.evaluation.suite.tasks)))

    @property
    def episodes(self) -> int:
        """Of all tasks."""
        return len(self.evaluation.suite.tasks) * self.evaluation.episodes

    def digest(self) -> str:
        """Of its episode set.

        Raises:
            MissingPackageError, SpecError: there is no such simulator.
        """
        return set_digest(self.evaluation.set_settings(), build_simulator(self.evaluation).versions)


def load_closed_loops(spec: ExperimentSpec) -> tuple[ClosedLoop, ...]:
    """Read the evaluations that ``evaluate.closed_loop`` names; their simulators need not be installed.

    Raises:
        SpecError: one of them has a mistake, two have the same name, or none measures what decides about the training.
    """
    loops = [ClosedLoop(settings, _load(settings)) for settings in spec.evaluate.closed_loops]
    for number, loop in enumerate(loops):
        if (tasks := known_tasks(loop.evaluation)) is not None:
            check_tasks(loop.evaluation, tasks)
        for other in loops[:number]:
            if loop.label == other.label:
                raise SpecError(
                    f"evaluate.closed_loop: two evaluations are called {loop.label}; name one anew (name=…)"
                )
            if loop.evaluation.metric_group == other.evaluation.metric_group:
                raise SpecError(
                    f"evaluate.closed_loop: {other.label} and {loop.label} both log "
                    f"{SIMULATION}{loop.evaluation.metric_group}/success; leave one of them out"
                )
    _check_deciding(spec, loops)
    return tuple(loops)


def _load(settings: ClosedLoopSpec) -> EvaluationSpec:
    try:
        return load_evaluation(settings.evaluation, settings.overrides)
    except SpecError as error:
        raise SpecError("\n".join(f"evaluate.closed_loop: {line}" for line in str(error).split("\n"))) from None


def _check_deciding(spec: ExperimentSpec, loops: Sequence[ClosedLoop]) -> None:
    schema = MetricSchema(simulation_metrics(simulated_metrics(loops)))
    for place, metric in spec.deciding_metrics.items():
        if metric.startswith(SIMULATION) and (problem := schema.why_not_best(metric)) is not None:
            raise SpecError(f"{place}: {problem}")


def simulated_metrics(loops: Sequence[ClosedLoop]) -> list[str]:
    """The names of all that these evaluations can measure."""
    return [name for loop in loops for name in loop.metrics]


def deciding_sets(spec: ExperimentSpec, loops: Sequence[ClosedLoop]) -> dict[str, str]:
    """The digests of those episode sets that say which checkpoint is best or when the training ends, by name: as data
    of validation, they are a part of the experiment.

    Raises:
        MissingPackageError, SpecError: there is no such simulator.
    """
    deciding = set(spec.deciding_metrics.values())
    return {
        f"evaluate.closed_loop {loop.label}": loop.digest() for loop in loops if deciding.intersection(loop.metrics)
    }

"""vlatrack: train, evaluate and track vision-language-action models from one YAML.

What stands in ``__all__`` is the public API. Each name is imported when it is first used: ``import vlatrack`` takes
milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vlatrack import errors
    from vlatrack.builders.experiment import Experiment
    from vlatrack.errors import VlatrackError
    from vlatrack.importers.episodes import compare_episodes as compare
    from vlatrack.inference.observation import Observation
    from vlatrack.inference.session import Execution, Session
    from vlatrack.metrics.schema import MetricSchema
    from vlatrack.models.backbones.base import Backbone
    from vlatrack.models.losses.base import LossTerm
    from vlatrack.runner.acting import Policy
    from vlatrack.runner.closed_loop import evaluate_in_simulator
    from vlatrack.runner.comparison.comparison import compare_runs
    from vlatrack.runner.evaluate import evaluate_run as evaluate
    from vlatrack.runner.export import export_policy as export
    from vlatrack.runner.run import resume_run as resume
    from vlatrack.runner.run import run_experiment as train
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.spec.load import load_spec
    from vlatrack.tracking.run import TrackedRun, start_run
    from vlatrack.training.callback import Callback

__all__ = [
    "Backbone",
    "Callback",
    "Execution",
    "Experiment",
    "ExperimentSpec",
    "LossTerm",
    "MetricSchema",
    "Observation",
    "Policy",
    "Session",
    "TrackedRun",
    "VlatrackError",
    "__version__",
    "compare",
    "compare_runs",
    "errors",
    "evaluate",
    "evaluate_in_simulator",
    "export",
    "load_spec",
    "resume",
    "start_run",
    "train",
]

_PLACES = {
    "Backbone": "vlatrack.models.backbones.base:Backbone",
    "Callback": "vlatrack.training.callback:Callback",
    "Execution": "vlatrack.inference.session:Execution",
    "Experiment": "vlatrack.builders.experiment:Experiment",
    "ExperimentSpec": "vlatrack.spec.experiment:ExperimentSpec",
    "LossTerm": "vlatrack.models.losses.base:LossTerm",
    "MetricSchema": "vlatrack.metrics.schema:MetricSchema",
    "Observation": "vlatrack.inference.observation:Observation",
    "Policy": "vlatrack.runner.acting:Policy",
    "Session": "vlatrack.inference.session:Session",
    "TrackedRun": "vlatrack.tracking.run:TrackedRun",
    "VlatrackError": "vlatrack.errors:VlatrackError",
    "compare": "vlatrack.importers.episodes:compare_episodes",
    "compare_runs": "vlatrack.runner.comparison.comparison:compare_runs",
    "evaluate": "vlatrack.runner.evaluate:evaluate_run",
    "evaluate_in_simulator": "vlatrack.runner.closed_loop:evaluate_in_simulator",
    "export": "vlatrack.runner.export:export_policy",
    "load_spec": "vlatrack.spec.load:load_spec",
    "resume": "vlatrack.runner.run:resume_run",
    "start_run": "vlatrack.tracking.run:start_run",
    "train": "vlatrack.runner.run:run_experiment",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("vlatrack.errors")
    if name not in _PLACES:
        raise AttributeError(f"module 'vlatrack' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__

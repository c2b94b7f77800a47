"""From a sweep's file to a validated sweep: its space fits the experiment before the first trial begins."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SIMULATION, MetricSchema
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import checked, load_spec, read_mapping, spec_error
from vlatrack.spec.structure import field_at
from vlatrack.spec.sweep import LARGEST_GRID, Dimension, Setting, SweepSpec
from vlatrack.spec.yaml_tree import Path as TreePath
from vlatrack.spec.yaml_tree import Problem, Tree

Number = type[int] | type[float]


@dataclass(frozen=True)
class Axis:
    """One dimension of the space, with the type that the experiment's models give its setting."""

    path: str
    dimension: Dimension
    number: Number | None
    """int or float for an interval; None for choices"""

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of an interval; with a step, the highest that is reached."""
        low, high = self.dimension.log or self.dimension.range or (math.nan, math.nan)
        if self.dimension.step is not None:
            high = low + self.dimension.step * math.floor((high - low) / self.dimension.step + 1e-9)
        return (int(low), int(high)) if self.number is int else (low, high)

    def grid(self) -> list[Setting]:
        """Every value, of choices or of a range with a step."""
        if self.dimension.choices is not None:
            return list(self.dimension.choices)
        assert self.dimension.step is not None, "the spec asks for it"
        low, high = self.bounds
        count = round((high - low) / self.dimension.step) + 1
        values = [low + self.dimension.step * number for number in range(count)]
        return [int(value) for value in values] if self.number is int else list(values)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose parts fit its experiment."""

    file: Path
    spec: SweepSpec
    experiment: ExperimentSpec
    """with the fixed overrides, and a group at the trackers"""
    axes: tuple[Axis, ...]

    @property
    def experiment_file(self) -> Path:
        return self.file.parent / self.spec.experiment

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.spec.seeds or (self.experiment.seed,)

    @property
    def trials(self) -> int:
        """How many configurations are tried."""
        return min(self.spec.trials or LARGEST_GRID, self.grid_size or LARGEST_GRID)

    @property
    def grid_size(self) -> int | None:
        """Combinations of a grid; None for another sampler."""
        if self.spec.sampler.kind != "grid":
            return None
        return math.prod(len(axis.grid()) for axis in self.axes)

    def overrides(self, settings: Mapping[str, Setting], seed: int) -> list[str]:
        """``key=value`` overrides of the run with these values of the space and this seed."""
        seeded = {"seed": seed} if self.spec.seeds else {}
        return [override_of(path, value) for path, value in {**self.spec.overrides, **settings, **seeded}.items()]


def is_sweep(path: str | Path) -> bool:
    """Whether the file at `path` is meant as a sweep: it has a space, and neither backbone nor suite.

    Raises:
        SpecError: it cannot be read, or is no mapping.
    """
    root = read_mapping(Path(path)).root
    return isinstance(root, dict) and "space" in root and not {"backbone", "suite"} & root.keys()


def load_sweep(path: str | Path) -> Sweep:
    """Read the sweep at `path` and check it against its experiment.

    Raises:
        SpecError: one line for each mistake: of the sweep's file, then of the experiment with its overrides, then of
            each bound and choice of the space, and of the metrics.
    """
    file = Path(path)
    tree = read_mapping(file)
    spec = checked(tree, SweepSpec)
    place = file.parent / spec.experiment
    if not place.is_file():
        problem = f"{place}: no such file; the path is taken from the folder of the sweep's file"
        raise spec_error([Problem(tree.place(("experiment",)), ("experiment",), problem)])
    load_spec(place)  # its own mistakes first
    fixed = [override_of(name, value) for name, value in spec.overrides.items()]
    tree.problems += [
        problem
        for name, value in spec.overrides.items()
        for problem in _problems_of(place, [override_of(name, value)], tree, ("overrides", name))
    ]
    if not tree.problems:
        tree.problems += _problems_of(place, fixed, tree, ("overrides",))
    if tree.problems:
        raise spec_error(tree.problems)
    experiment = grouped(load_spec(place, fixed), spec.name)
    found = [_axis(name, dimension, experiment, place, tree) for name, dimension in spec.space.items()]
    axes = [axis for axis in found if axis is not None]
    for axis in axes:
        tree.problems += _problems_of_axis(axis, [other for other in axes if other is not axis], place, fixed, tree)
    tree.problems += _metric_problems(spec, experiment, tree)
    if tree.problems:
        raise spec_error(dict.fromkeys(tree.problems))
    sweep = Sweep(file, spec, experiment, tuple(axes))
    if (size := sweep.grid_size) is not None and size > LARGEST_GRID:
        problem = f"a grid of {size:,} combinations; take fewer values, or sampler.kind: tpe"
        raise spec_error([Problem(tree.place(("space",)), ("space",), problem)])
    return sweep


def override_of(path: str, value: Setting) -> str:
    """``path=value``, as on the command line."""
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


def sweep_schema(experiment: ExperimentSpec, metrics: list[str]) -> MetricSchema:
    """The metrics of an experiment without its own loss terms, and those of simulators among `metrics`."""
    head = experiment.action_head
    simulated = [metric for metric in metrics if metric.startswith(SIMULATION)]
    return MetricSchema.for_experiment(horizon=head.time_horizon, action_dim=head.action_dim, simulated=simulated)


def grouped(spec: ExperimentSpec, name: str) -> ExperimentSpec:
    """The runs of a sweep stand together at the trackers, unless the experiment names another group."""
    if spec.tracking.group is not None:
        return spec
    return spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"group": name})})


def _axis(path: str, dimension: Dimension, experiment: ExperimentSpec, place: Path, tree: Tree) -> Axis | None:
    """The dimension with its type; None if a problem was added to the tree."""
    at = ("space", path)
    if dimension.choices is not None:
        return Axis(path, dimension, None)
    number = _number_at(path, experiment)
    bounds = dimension.log or dimension.range or (0.0, 0.0)
    if number is None:
        unfit = Problem(tree.place(at), at, "takes no single number; give its values as choices: [...]")
        tree.problems += _problems_of(place, [override_of(path, bounds[0])], tree, at) or [unfit]
        return None
    written = [*bounds, *([] if dimension.step is None else [dimension.step])]
    if number is int and (odd := next((value for value in written if value != int(value)), None)) is not None:
        tree.problems.append(Problem(tree.place(at), at, f"is an integer, and {odd:g} is none"))
        return None
    return Axis(path, dimension, number)


def _number_at(path: str, experiment: ExperimentSpec) -> Number | None:
    """int or float, as the models have it; None for a setting that is no number. Inside options of a class of the
    user's own, the value that stands there says."""
    segments: TreePath = tuple(int(part) if part.isdecimal() else part for part in path.split("."))
    value = experiment.model_dump(mode="python")
    info = field_at(value, segments)
    types = set() if info is None else set(_scalars(info.annotation))
    if info is None:
        inside: object = value
        for segment in segments:
            try:
                inside = inside[segment]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                return None
        types = {type(inside)}
    return int if int in types and float not in types else float if float in types else None


def _scalars(annotation: object) -> Iterator[object]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _scalars(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _scalars(part)
    elif origin is not Literal:
        yield annotation


def _extremes(axis: Axis) -> Iterator[tuple[Setting, TreePath]]:
    """The values of a dimension that show whether all of them are allowed, with the places where they are written."""
    if axis.dimension.choices is not None:
        for number, choice in enumerate(axis.dimension.choices):
            yield choice, ("space", axis.path, "choices", number)
        return
    kind = "log" if axis.dimension.log is not None else "range"
    for number, bound in enumerate(axis.bounds):
        yield bound, ("space", axis.path, kind, number)


def _problems_of_axis(
    axis: Axis, others: Sequence[Axis], place: Path, fixed: Sequence[str], tree: Tree
) -> Iterator[Problem]:
    """Values that the experiment does not allow, neither as it is nor together with any end of another dimension."""
    for value, at in _extremes(axis):
        overrides = [*fixed, override_of(axis.path, value)]
        problems = _problems_of(place, overrides, tree, at)
        together = (override_of(other.path, end) for other in others for end, _ in _extremes(other))
        if problems and all(_problems_of(place, [*overrides, more], tree, at) for more in together):
            yield from problems


def _problems_of(place: Path, overrides: list[str], tree: Tree, at: TreePath) -> list[Problem]:
    """What is wrong with the experiment under these overrides, told at the place in the sweep."""
    try:
        load_spec(place, overrides)
    except SpecError as error:
        lines = [line.partition("  ")[2] or line for line in str(error).splitlines()]
        return [Problem(tree.place(at), (), f"{at[0]}: {line}") for line in lines]
    return []


def _metric_problems(spec: SweepSpec, experiment: ExperimentSpec, tree: Tree) -> Iterator[Problem]:
    named: dict[TreePath, str] = {
        ("objectives", number, "metric"): objective.metric for number, objective in enumerate(spec.objectives)
    }
    pruned_by = spec.pruned_by
    if pruned_by is not None:
        named["pruner", "metric"] = pruned_by
    schema = sweep_schema(experiment, list(named.values()))
    for at, metric in named.items():
        if metric.startswith(SIMULATION) and not experiment.evaluate.closed_loops:
            text = f"{metric} is what evaluate.closed_loop of the experiment measures, and there is none"
            yield Problem(tree.place(at), at, text)
        elif metric in schema or not experiment.loss.terms:  # else it may be of a loss term that only a run loads
            watched = at[0] == "pruner"
            if problem := schema.why_not_best(metric) if watched else schema.why_no_objective(metric):
                yield Problem(tree.place(at), at, problem)

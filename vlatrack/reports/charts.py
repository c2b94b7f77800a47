"""Which metrics of a run stand together: the groups of charts that figures, the dashboard and reports show.

Names alone decide, no values; nothing here draws.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlatrack.metrics.schema import EVALUATE, SPLITS, SYSTEM, TRAIN, Direction, Metric, MetricSchema
from vlatrack.metrics.simulation import simulation_name, simulation_parts

SUCCESS, SUCCESS_LOW, SUCCESS_HIGH = "success", "success_low", "success_high"
"""Lines of a success rate in a simulator."""
VALUE = "value"
"""The line of a metric that has no split."""


@dataclass(frozen=True)
class Chart:
    """One metric on its splits, a success rate with its interval, or a metric alone."""

    title: str
    unit: str
    direction: Direction
    lines: Mapping[str, str]
    """The metric of each line, by split, `SUCCESS` and the like, or `VALUE`."""
    floor: str | None = None
    """The metric whose last value is a lower bound; None: there is none."""
    from_zero: bool = False
    """Whether the y axis starts at 0, so that noise in a speed does not look like a change."""


@dataclass(frozen=True)
class ChartGroup:
    """Charts that are looked at together; `shared_scale`: with the same y axis, so that they can be compared."""

    name: str
    caption: str
    charts: tuple[Chart, ...]
    shared_scale: bool = False


class ChartBook:
    """The charts of a run that has logged these metrics."""

    def __init__(self, names: Iterable[str], *, action_names: Sequence[str] = ()) -> None:
        """`action_names`: of the dimensions of an action; those without a name are shown by their number."""
        self._names = dict.fromkeys(names)
        self._action_names = action_names
        self.schema = MetricSchema.covering(self._names)

    def figures(self) -> Iterator[ChartGroup]:
        """The groups that are drawn when a run ends; those without charts are left out."""
        losses = [metric.name for metric in self.schema if metric.group == "loss"]
        terms = [name.removeprefix(f"{TRAIN}_") for name in losses if name.startswith(f"{TRAIN}_")]
        training = [m.name.removeprefix(f"{TRAIN}_") for m in self.schema if m.group in ("optim", "speed")]
        floor = self._quantisation_floor()
        tokens = self._charts(self._with_mean("l1_loss_action"), floor=floor)
        hits = self._charts([*self._with_mean("acc_action"), *self._numbered("acc_image"), "acc_image_codes"])
        dimensions = self._charts(self._numbered("l1_loss_dim"), floor=floor)
        of_head = "L1 error of the continuous head"
        of_tokens = "L1 error of the decoded actions"
        groups = [
            ChartGroup("losses", "losses", self._charts(n for n in terms if not n.startswith("weighted_"))),
            ChartGroup("action_l1", "L1 error of the actions decoded from tokens", tokens, True),
            ChartGroup("head_l1", of_head, self._charts(self._numbered("l1_loss_head")), True),
            ChartGroup("accuracy", "token accuracy", hits, True),
            ChartGroup("action_dimensions", f"{of_tokens} by action dimension", dimensions, True),
            ChartGroup(
                "head_dimensions",
                f"{of_head} by action dimension",
                self._charts(self._numbered("l1_loss_head_dim")),
                True,
            ),
            ChartGroup("optimisation", "optimisation and speed", self._charts(training)),
            ChartGroup("success", "success in the simulator", self._success(), True),
        ]
        return (group for group in groups if group.charts)

    def page(self) -> Iterator[ChartGroup]:
        """The groups of a run's page: those of `figures`, and then every other metric that was logged."""
        shown: set[str] = set()
        for group in self.figures():
            shown |= {name for chart in group.charts for name in chart.lines.values()}
            yield group
        left = [name for name in self._names if name not in shown]
        weighted = [n for n in left if _without_split(n).startswith("weighted_") or "_gradient_share_" in n]
        yield from self._others("loss_terms", "loss terms as they are weighted", weighted)
        left = [name for name in left if name not in weighted and not name.startswith((SYSTEM, EVALUATE))]
        left = [name for name in left if simulation_parts(name) is None]
        yield from self._others("more", "more metrics", left)
        yield from self._others("machine", "the machine", [n for n in self._names if n.startswith(SYSTEM)])

    def _others(self, name: str, caption: str, metrics: Iterable[str]) -> Iterator[ChartGroup]:
        bare = dict.fromkeys(_without_split(metric) for metric in metrics)
        of_splits = self._charts(bare)
        alone = tuple(
            Chart(
                metric.removeprefix(SYSTEM),
                self.schema[metric].unit if metric in self.schema else "",
                self.schema[metric].direction if metric in self.schema else Direction.NONE,
                {VALUE: metric},
                from_zero=metric.startswith(SYSTEM),
            )
            for metric in bare
            if metric in self._names
        )
        if charts := (*of_splits, *alone):
            yield ChartGroup(name, caption, charts)

    def _charts(self, names: Iterable[str], *, floor: str | None = None) -> tuple[Chart, ...]:
        """A chart for each of these metrics (named without split) that was logged."""
        charts = []
        for name in names:
            lines = {split: f"{split}_{name}" for split in SPLITS if f"{split}_{name}" in self._names}
            if not lines:
                continue
            metric = self.schema[full] if (full := next(iter(lines.values()))) in self.schema else None
            unit, direction = ("", Direction.NONE) if metric is None else (metric.unit, metric.direction)
            from_zero = metric is not None and metric.group == "speed"
            charts.append(Chart(_title(name, metric, self._action_names), unit, direction, lines, floor, from_zero))
        return tuple(charts)

    def _success(self) -> tuple[Chart, ...]:
        """A chart for each simulator, or way of acting in it: of all its tasks together."""
        charts = []
        for group in dict.fromkeys(parts.group for parts in map(simulation_parts, self._names) if parts):
            named = {measure: simulation_name(group, measure) for measure in (SUCCESS, SUCCESS_LOW, SUCCESS_HIGH)}
            lines = {measure: name for measure, name in named.items() if name in self._names}
            if lines:
                metric = self.schema[named[SUCCESS]]
                charts.append(Chart(group, metric.unit, metric.direction, lines))
        return tuple(charts)

    def _with_mean(self, family: str) -> list[str]:
        steps = self._numbered(family)
        return steps if len(steps) == 1 else [family, *steps]

    def _numbered(self, family: str) -> list[str]:
        return [f"{family}_{number}" for number in sorted(self._numbers(family))]

    def _numbers(self, family: str) -> set[int]:
        pattern = re.compile(rf"(?:{'|'.join(SPLITS)})_{family}_(\d+)")
        return {int(found[1]) for found in map(pattern.fullmatch, self._names) if found}

    def _quantisation_floor(self) -> str | None:
        return next((name for split in SPLITS if (name := f"{split}_quantisation_floor") in self._names), None)


def _without_split(name: str) -> str:
    split = next((split for split in SPLITS if name.startswith(f"{split}_")), None)
    return name if split is None else name.removeprefix(f"{split}_")


def _title(name: str, metric: Metric | None, action_names: Sequence[str]) -> str:
    if metric is not None and metric.step is not None:
        return f"step {metric.step}  (X = {name.rpartition('_')[2]})"
    if name in ("l1_loss_action", "acc_action"):
        return "mean over the steps"
    if name.startswith("l1_loss") and "_dim_" in name:
        number = int(name.rpartition("_")[2])
        return action_names[number] if number < len(action_names) else f"dimension {number}"
    return name

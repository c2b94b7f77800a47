"""The model card of an exported policy: README.md, which the Hugging Face hub shows on the policy's page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlatrack.metrics.schema import EVALUATE, SPLITS, TRAIN, MetricSchema, split_and_name
from vlatrack.reports.success import SimulatedRate, simulated_rates

_HUB = {"library_name": "vlatrack", "pipeline_tag": "robotics"}
_GROUPS, _LEFT_OUT = ("loss", "action", "head"), ("l1_loss_dim_", "l1_loss_head_dim_", "weighted_")
"""Groups of metrics that a card lists, but for names that begin so; the run's journal has all of them."""


@dataclass(frozen=True)
class DataSplit:
    """The demonstrations of one split."""

    name: str
    source: str
    episodes: int | None
    steps: int | None
    sha256: str


@dataclass(frozen=True)
class SuccessRow:
    """The episodes of one task, or of all, with the rate's interval of 95 %."""

    table: str
    task: str
    episodes: int
    successes: int
    errors: int  # are no part of the rate
    rate: float | None
    interval: tuple[float, float]


@dataclass(frozen=True)
class ActingInterface:
    """What the policy sees and answers."""

    cameras: Sequence[str]
    image_size: int  # pixels, square
    history: int
    deltas: tuple[float, ...] | None  # seconds of each; None: consecutive steps
    horizon: int
    action_low: Sequence[float]
    action_high: Sequence[float]
    state_dim: int | None


@dataclass(frozen=True)
class ModelCard:
    """Everything that the card tells."""

    name: str
    source: str  # what Policy.load is called with
    origin: str  # experiment/run@checkpoint
    policy_sha256: str
    version: str  # of vlatrack
    backbone: str
    interface: ActingInterface
    data: Sequence[DataSplit]
    step: int | None
    metrics: Mapping[str, float]  # of the checkpoint's step, by full name
    success: Sequence[SuccessRow]
    lineage: Sequence[str]  # oldest first
    spec: str  # YAML

    def render(self) -> str:
        """The card in Markdown, with the front matter that the hub reads."""
        sections = {
            f"# {self.name}": self._what_it_is(),
            "## Use": self._use(),
            "## What it sees and answers": _table(("what", "value"), self._interface_rows()),
            "## Data": _table(("split", "demonstrations", "episodes", "steps", "SHA-256"), map(_data_row, self.data)),
            "## Losses and errors": self._metrics(),
            "## Success": self._success(),
            "## Where it comes from": self._lineage(),
            "## Experiment": f"```yaml\n{self.spec.rstrip()}\n```",
        }
        return "\n\n".join([self._front_matter(), *(f"{title}\n\n{text}" for title, text in sections.items())]) + "\n"

    def _front_matter(self) -> str:
        tags = ["robotics", "vision-language-action", "vlatrack", self.backbone]
        lines = [f"{key}: {value}" for key, value in _HUB.items()] + ["tags:", *(f"- {tag}" for tag in tags)]
        return "\n".join(["---", *lines, "---"])

    def _what_it_is(self) -> str:
        return (
            "A vision-language-action policy: from images, an instruction and the robot's state to a chunk of "
            f"{self.interface.horizon} actions. Its backbone is a {self.backbone}; a continuous action head and action "
            "tokens both answer.\n\n"
            f"It was trained with vlatrack {self.version}. Its digest, which names it in every tracker and table:\n\n"
            f"    {self.policy_sha256}"
        )

    def _use(self) -> str:
        state = "None" if self.interface.state_dim is None else "state"
        images = ", ".join(f'"{camera}": image' for camera in self.interface.cameras)
        return "\n".join(
            [
                "```python",
                "from vlatrack import Observation, Policy",
                f'policy = Policy.load("{self.source}")',
                f'actions = policy.act(Observation({{{images}}}, "what to do", {state})).actions',
                "```",
                "",
                f"`actions` is float64 [{self.interface.horizon}, {len(self.interface.action_low)}], in the units of "
                "the training data.",
            ]
        )

    def _interface_rows(self) -> Iterator[tuple[str, ...]]:
        sees = self.interface
        size = f"{sees.image_size} by {sees.image_size} pixels"
        yield "cameras", ", ".join(f"`{camera}`" for camera in sees.cameras)
        yield "images", f"uint8 [height, width, 3], RGB; resized to {size}"
        if sees.deltas is None:
            yield "moments", f"{sees.history}: the present one" + (" and those before it" if sees.history > 1 else "")
        else:
            yield "moments", f"{sees.history}: at {', '.join(f'{delta:g}' for delta in sees.deltas)} s"
        yield "state", "none" if sees.state_dim is None else f"{sees.state_dim} numbers"
        yield "answer", f"{sees.horizon} actions of {len(sees.action_low)} numbers"
        for number, (low, high) in enumerate(zip(sees.action_low, sees.action_high, strict=True)):
            yield f"action {number}", f"trained between {low:.6g} and {high:.6g}"

    def _metrics(self) -> str:
        """A table for what training logged, and one for what `vlatrack evaluate` measured later."""
        tables = []
        for prefix, told in (("", "Logged while it trained"), (EVALUATE, "Measured afterwards by `vlatrack evaluate`")):
            splits = [split for split in SPLITS if any(name.startswith(f"{prefix}{split}_") for name in self.metrics)]
            if rows := list(self._metric_rows(prefix, splits)):
                at = "" if self.step is None else f", at step {self.step}"
                tables.append(f"{told}{at}:\n\n" + _table(("metric", *splits, "what it is"), rows))
        return "\n\n".join(tables) or "None are recorded for this checkpoint."

    def _metric_rows(self, prefix: str, splits: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """In the order of their declaration."""
        for metric in MetricSchema.covering(self.metrics):
            split, name = split_and_name(metric.name)
            if split != TRAIN or metric.group not in _GROUPS or name.startswith(_LEFT_OUT):
                continue
            values = [self.metrics.get(f"{prefix}{split}_{name}") for split in splits]
            if any(value is not None for value in values):
                yield f"`{name}`", *("" if value is None else f"{value:.4g}" for value in values), metric.meaning

    def _success(self) -> str:
        parts = []
        if self.success:
            head = ("episodes of", "task", "episodes", "successes", "errors", "success", "95 % (Wilson)")
            parts.append(_table(head, map(_success_row, self.success)))
        if rates := list(simulated_rates(self.metrics)):
            at = "" if self.step is None else f", at step {self.step}"
            table = _table(
                ("simulator", "task", "episodes", "errors", "success", "95 % (Wilson)"), map(_simulated_row, rates)
            )
            parts.append(f"Measured by `vlatrack evaluate`{at}:\n\n{table}")
        if parts:
            parts.append("Errors are episodes that say nothing about the policy; they are no part of the rate.")
        return "\n\n".join(parts) or "It has not been evaluated in episodes."

    def _lineage(self) -> str:
        steps = [f"1. initialised from {parent}" for parent in self.lineage]
        return "\n".join([*steps, f"{'1. ' if steps else ''}trained as `{self.origin}`"])


def _data_row(split: DataSplit) -> tuple[str, ...]:
    numbers = ("" if number is None else str(number) for number in (split.episodes, split.steps))
    return split.name, split.source, *numbers, f"`{split.sha256}`"


def _success_row(row: SuccessRow) -> tuple[str, ...]:
    rate = "" if row.rate is None else f"{row.rate:.1%}"
    low, high = row.interval
    counts = (str(row.episodes), str(row.successes), str(row.errors))
    return row.table, row.task, *counts, rate, f"{low:.1%} to {high:.1%}"


def _simulated_row(row: SimulatedRate) -> tuple[str, ...]:
    rate = "" if row.success is None else f"{row.success:.1%}"
    low, high = row.interval
    return row.group, row.task, str(row.episodes), str(row.errors), rate, f"{low:.1%} to {high:.1%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

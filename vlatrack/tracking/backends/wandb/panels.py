"""What the workspace view of a W&B project shows: sections of charts, without W&B's own models of them.

The documented losses stand first, both heads side by side; every metric is one that `vlatrack.metrics` declares.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vlatrack.metrics.names import SIMULATION, SPLITS, STEP_SLOTS, SYSTEM, TRAIN, VAL_IND, VAL_OOD
from vlatrack.metrics.schema import MetricSchema

KeyOf = Callable[[str], str]
"""From the name of a metric to its key."""


@dataclass(frozen=True)
class Chart:
    """Lines over the training step: of these keys, or of all keys that fit a regular expression."""

    title: str
    keys: tuple[str, ...] = ()
    pattern: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class ChartSection:
    """Charts in rows of so many columns."""

    name: str
    charts: tuple[Chart, ...]
    columns: int
    is_first: bool = False
    """Whether it stays on top of the view."""


_TOKENS, _HEAD = "action tokens", "action head"


def view_sections(key_of: KeyOf, *, horizon: int = STEP_SLOTS) -> tuple[ChartSection, ...]:
    """The sections of the view.

    Args:
        horizon: the number of steps of the longest chunk of the project's policies. W&B shows what a run has of them.
    """
    charts = _Charts(key_of, horizon)
    return (
        ChartSection("VLA losses", tuple(charts.training_losses()), columns=2, is_first=True),
        ChartSection("L1 of each chunk step", tuple(charts.chunk_steps()), columns=len(SPLITS)),
        ChartSection("Validation losses", tuple(charts.validation_losses()), columns=2),
        ChartSection("Health", tuple(charts.health()), columns=3),
        ChartSection("Throughput and memory", tuple(charts.throughput()), columns=3),
        ChartSection("Success in simulators", tuple(_success_rates()), columns=2),
    )


class _Charts:
    """Makes charts of declared metrics; KeyError, by the schema, for any other."""

    def __init__(self, key_of: KeyOf, horizon: int) -> None:
        self._key_of = key_of
        self._slots = range(max(horizon, STEP_SLOTS))  # of shorter chunks, the last ones
        self._schema = MetricSchema.for_experiment(horizon=len(self._slots), action_dim=1)

    def training_losses(self) -> Iterator[Chart]:
        """closs, of the action tokens, beside loss_ct, of the action head; then what is added to them, and the sum."""
        for loss, meaning in (("closs", _TOKENS), ("loss_ct", _HEAD), ("z_loss", "logits"), ("loss", "the sum")):
            yield self._chart(f"{TRAIN}_{loss}: {meaning}", [f"{TRAIN}_{loss}"])

    def chunk_steps(self) -> Iterator[Chart]:
        """A chart for each split, the last step of the chunk first, for the documented L1 and below it the head's."""
        for metric, route in (("l1_loss_action", _TOKENS), ("l1_loss_head", _HEAD)):
            for split in SPLITS:
                names = [f"{split}_{metric}_{slot}" for slot in reversed(self._slots)]
                yield self._chart(f"{split}: L1 of each chunk step, {route}", names)

    def validation_losses(self) -> Iterator[Chart]:
        for loss in ("closs", "loss_ct", "z_loss", "loss"):
            yield self._chart(f"val {loss}", [f"{split}_{loss}" for split in (VAL_IND, VAL_OOD)])

    def health(self) -> Iterator[Chart]:
        """What the detectors watch beside the losses, and what a finding sends people to."""
        yield self._chart("gradient norm before clipping", [f"{TRAIN}_grad_norm"])
        shares = [f"{TRAIN}_gradient_share_{term}" for term in ("closs", "loss_ct", "z_loss")]
        yield self._chart("share of each loss in the gradient", shares)
        yield self._chart("steps that were not taken", [f"{TRAIN}_skipped_steps"])
        floor = [f"{TRAIN}_l1_loss_action", f"{TRAIN}_quantisation_floor"]
        yield self._chart("L1 of action tokens, and the floor of their bins", floor)
        yield self._chart("calibration error of action tokens", [f"{split}_ece_action" for split in SPLITS])
        yield self._chart("learning rate", [f"{TRAIN}_lr"])

    def throughput(self) -> Iterator[Chart]:
        yield self._chart("samples per second", [f"{TRAIN}_samples_per_s"])
        yield self._chart("time of a step, and waiting for data", [f"{TRAIN}_step_time_s", f"{TRAIN}_data_wait_s"])
        yield self._chart("model FLOPs utilisation", [f"{TRAIN}_mfu"])
        yield self._chart("peak memory on the device", [f"{TRAIN}_memory_mib"])
        yield Chart("load of GPUs", pattern=rf"^{SYSTEM}gpu_\d+_percent$", unit="%")
        yield self._chart("load of processor cores", [f"{SYSTEM}cpu_percent"])

    def _chart(self, title: str, names: Sequence[str]) -> Chart:
        unit = self._schema[names[0]].unit
        return Chart(title, tuple(map(self._key_of, names)), unit=None if unit in ("1", "mixed") else unit)


def _success_rates() -> Iterator[Chart]:
    """By patterns: which suites and tasks there are, only the runs know."""
    yield Chart("success rate", pattern=rf"^{SIMULATION}[^/]+/success$", unit="fraction")
    yield Chart("success rate of each task", pattern=rf"^{SIMULATION}[^/]+/[^/]+/success$", unit="fraction")

"""Two runs record by record: identical, within a tolerance, or from which step on they differ."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlatrack.metrics.schema import MetricSchema
from vlatrack.runner.comparison.metrics import measures_machine
from vlatrack.runner.comparison.recorded import History

OTHER_PROCESSOR = 1e-3
ANY_GPU = 1e-2


@dataclass(frozen=True)
class Tolerance:
    """The largest relative difference that counts as the same result, and for which hardware it is."""

    relative: float
    why: str

    @classmethod
    def of(cls, recorded: Mapping[str, str], here: Mapping[str, str]) -> "Tolerance":
        """For two machines, as manifests describe their hardware."""
        gpus = recorded.get("gpus", "none"), here.get("gpus", "none")
        if gpus[0] != gpus[1]:
            return cls(ANY_GPU, f"other hardware: GPU {gpus[0]} then, {gpus[1]} now")
        if gpus[0] != "none":
            return cls(ANY_GPU, f"the same GPU, {gpus[0]}, whose kernels may add in another order each time")
        same = all(recorded.get(name) == here.get(name) for name in ("cpu", "threads"))
        return cls(0.0, "the same processor and threads") if same else cls(OTHER_PROCESSOR, _other(recorded, here))


@dataclass(frozen=True)
class Divergence:
    """The first value that is not the recorded one; None stands for a value that was not logged."""

    metric: str
    step: int
    recorded: float | None
    now: float | None


@dataclass(frozen=True)
class RecordComparison:
    """What the records of two runs have in common."""

    verdict: Literal["identical", "within tolerance", "differs"]
    values: int  # how many were compared
    metrics: int
    last_step: int | None
    largest: float  # relative difference
    first: Divergence | None  # beyond the tolerance, or else the first that is not identical


def compare_records(
    recorded: History, now: History, *, tolerance: float, up_to: int | None = None, is_whole: bool = True
) -> RecordComparison:
    """Compare every value of every metric that does not measure time or the machine.

    Args:
        up_to: the last step that the new run was to reach. Of its last step only metrics that both have count, since
            it ends there with an evaluation, and a window that the recorded run may not have; None: the whole run.
        is_whole: false for a recorded run whose journal has damaged lines: what it lacks does not count.
    """
    schema = MetricSchema.covering(dict.fromkeys([*recorded, *now]))
    names = [n for n in dict.fromkeys([*recorded, *now]) if n != "epoch" and not measures_machine(n, schema)]
    differing: list[tuple[float, Divergence]] = []
    values, last_step, compared = 0, None, set[str]()
    for name in names:
        of_recorded, of_now = dict(recorded.get(name, ())), dict(now.get(name, ()))
        for step in sorted({*of_recorded, *of_now}):
            a, b = of_recorded.get(step), of_now.get(step)
            if up_to is not None and (step > up_to or (step == up_to and None in (a, b))):
                continue
            if a is None and not is_whole:
                continue
            values += 1
            compared.add(name)
            last_step = step if last_step is None else max(last_step, step)
            if (difference := _difference(a, b)) > 0:
                differing.append((difference, Divergence(name, step, a, b)))
    beyond = [divergence for difference, divergence in differing if difference > tolerance]
    first = min(beyond or [d for _, d in differing], key=lambda d: d.step, default=None)
    verdict: Literal["identical", "within tolerance", "differs"] = "identical"
    if differing:
        verdict = "differs" if beyond else "within tolerance"
    largest = max((difference for difference, _ in differing), default=0.0)
    return RecordComparison(verdict, values, len(compared), last_step, largest, first)


def _difference(a: float | None, b: float | None) -> float:
    """Relative; infinite where one is missing or not finite alone."""
    if a is None or b is None:
        return math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _other(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    told = [
        f"{name} {recorded.get(name, 'unknown')} then, {here.get(name, 'unknown')} now"
        for name in ("cpu", "threads")
        if recorded.get(name) != here.get(name)
    ]
    return f"another processor or number of threads: {'; '.join(told)}"

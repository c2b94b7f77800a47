"""Whether the last value of a metric of the first run reaches a number, or that of another run."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlatrack.errors import SpecError
from vlatrack.metrics.schema import Direction, MetricSchema

EXAMPLE = "val_ind_loss_ct <= B * 1.02, val_ind_loss_ct <= B + 1%, or val_ind_closs <= 1.5"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GATE = re.compile(
    rf"\s*(?P<metric>[\w/.-]+)\s*(?P<sign><=|>=|<|>)\s*(?:(?P<limit>{_NUMBER})|(?P<run>[A-Z])"
    r"\s*(?:\*\s*(?P<factor>\d+\.?\d*|\.\d+))?"
    r"\s*(?:(?P<side>[+-])\s*(?P<margin>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>pp|%)?)?)\s*"
)


@dataclass(frozen=True)
class GateResult:
    """The value of the first run, what it had to reach, and in words why it did not; None where there is none."""

    value: float | None
    limit: float | None
    passes: bool
    reason: str | None


@dataclass(frozen=True)
class MetricGate:
    """What the first run has to reach: a number, or the value of the run with this letter, times, plus."""

    metric: str
    sign: str  # <=, >=, < or >
    run: str | None  # None: `margin` alone is the limit
    factor: float
    margin: float
    relative: bool  # the margin is a share of the other run's absolute value
    text: str

    @classmethod
    def parse(cls, text: str) -> "MetricGate":
        """Raises SpecError, with an example, for anything else."""
        found = _GATE.fullmatch(text)
        if found is None:
            raise SpecError(f"--gate: {text!r} is no gate; write it as {EXAMPLE}")
        if found["unit"] == "pp":
            raise SpecError(f"--gate: {text!r}: pp is for success; write the number, or % of {found['run']}'s value")
        if found["run"] == "A":
            raise SpecError(f"--gate: {text!r}: compares A with itself; B is the second run")
        if found["run"] is None:
            return cls(found["metric"], found["sign"], None, 1.0, float(found["limit"]), False, text.strip())
        margin = float(found["margin"] or 0) * (-1 if found["side"] == "-" else 1)
        is_share = found["unit"] == "%"
        factor = float(found["factor"] or 1)
        if is_share:
            margin /= 100
        return cls(found["metric"], found["sign"], found["run"], factor, margin, is_share, text.strip())

    def check(self, histories: Sequence[Mapping[str, Sequence[tuple[int, float]]]]) -> GateResult:
        """Hold the last values of the runs against it; of A, B, C … in their order.

        A metric that a run lacks, and a value that is not finite, never passes.

        Raises:
            SpecError: no run has logged the metric, there is no run of that letter, or the other direction is better.
        """
        names = dict.fromkeys(name for history in histories for name in history)
        schema = MetricSchema.covering(names)
        if self.metric not in names:
            raise SpecError(f"--gate: no run has logged {schema.suggest(self.metric)}")
        self._check_direction(schema)
        if self.run is not None and ord(self.run) - ord("A") >= len(histories):
            raise SpecError(
                f"--gate: there is no run {self.run}; the runs are A to {chr(ord('A') + len(histories) - 1)}"
            )
        values = {letter: _last(histories[ord(letter) - ord("A")], self.metric) for letter in ("A", self.run or "A")}
        for letter, value in values.items():
            if value is None or not math.isfinite(value):
                told = "has not logged it" if value is None else f"has {value}, which reaches nothing"
                return GateResult(values["A"], None, False, f"{letter} {told}")
        value = values["A"]
        assert value is not None, "looked at above"
        limit = self._limit(values[self.run] if self.run is not None else None)
        return GateResult(value, limit, self._reaches(value, limit), None)

    def _limit(self, other: float | None) -> float:
        if other is None:
            return self.margin
        return other * self.factor + self.margin * (abs(other) if self.relative else 1.0)

    def _reaches(self, value: float, limit: float) -> bool:
        if self.sign.endswith("="):
            return value <= limit if self.sign == "<=" else value >= limit
        return value < limit if self.sign == "<" else value > limit

    def _check_direction(self, schema: MetricSchema) -> None:
        direction = schema[self.metric].direction if self.metric in schema else Direction.NONE
        worse = {Direction.LOWER: ">", Direction.HIGHER: "<"}.get(direction)
        if worse is not None and self.sign.startswith(worse):
            sign = "<=" if worse == ">" else ">="
            limit = self.run or f"{self.margin:g}"
            raise SpecError(f"--gate: {direction} is better of {self.metric}; write {self.metric} {sign} {limit}")


def _last(history: Mapping[str, Sequence[tuple[int, float]]], metric: str) -> float | None:
    return history[metric][-1][1] if metric in history else None

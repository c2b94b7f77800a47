"""Two policies on the same episodes: their rates, the interval of the difference, and whether it passes a gate."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import SpecError
from vlatrack.evaluation.episodes import EpisodeTable, Pairs, pair_episodes
from vlatrack.evaluation.intervals import (
    Interval,
    clopper_pearson,
    episodes_needed,
    holm,
    mcnemar,
    newcombe_paired,
    wilson,
)
from vlatrack.evaluation.sequential import ALPHA, evidence_above, evidence_below, evidence_of_difference

Verdict = Literal["above", "below", "undecided"]
"""Where the difference of A and B lies: above the margin, below it, or either is possible."""
SUCCESS = "success"

_GATE = re.compile(
    r"\s*(?P<metric>[\w/.-]+)\s*(?P<sign>>=|<=)\s*B\s*(?:(?P<side>[+-])\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>pp|%)?\s*)?"
)


@dataclass(frozen=True)
class Gate:
    """What the success rate of A has to reach, measured by B: ``success >= B - 2pp``."""

    margin: float  # is added to B's rate, a fraction
    text: str

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Raises SpecError, with an example, for anything else."""
        found = _GATE.fullmatch(text)
        example = "success >= B - 2pp"
        if found is None:
            raise SpecError(f"--gate: {text!r} is no gate; write it as {example}")
        if found["metric"] != SUCCESS:
            raise SpecError(f"--gate: {found['metric']} is a metric of runs; of evaluations, write {example}")
        if found["sign"] == "<=":
            raise SpecError(f"--gate: {text!r}: more success is better; write it as {example}")
        number = float(found["number"] or 0) / (100 if found["unit"] else 1)
        margin = -number if found["side"] == "-" else number
        if not -1 < margin < 1:
            raise SpecError(f"--gate: {text!r}: the margin lies between -100pp and 100pp")
        return cls(margin, text.strip())


@dataclass(frozen=True)
class SuccessRate:
    """The successes of one policy. Errors are counted, and are no part of the rate."""

    episodes: int
    successes: int
    errors: int

    @property
    def valid(self) -> int:
        return self.episodes - self.errors

    @property
    def rate(self) -> float | None:
        """None without an episode that is no error."""
        return self.successes / self.valid if self.valid else None

    @property
    def wilson(self) -> Interval:
        return wilson(self.successes, self.valid)

    @property
    def clopper_pearson(self) -> Interval:
        return clopper_pearson(self.successes, self.valid)

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "errors": self.errors,
            "success_rate": self.rate,
            "wilson": list(self.wilson),
            "clopper_pearson": list(self.clopper_pearson),
        }


def success_rate(table: EpisodeTable) -> SuccessRate:
    """Over all episodes."""
    counts = table.counts()
    return SuccessRate(len(table.outcomes), counts["success"], counts["error"])


def success_by_task(table: EpisodeTable) -> dict[str, SuccessRate]:
    return {
        task: SuccessRate(counts.total(), counts["success"], counts["error"])
        for task, counts in table.by_task().items()
    }


def task_mean(rates: dict[str, SuccessRate]) -> float | None:
    """The mean of the tasks' rates, each with the same weight; None if a task has no episode that is no error."""
    values = [rate.rate for rate in rates.values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class Comparison:
    """A and B on the same episodes."""

    a: EpisodeTable
    b: EpisodeTable
    pairs: Pairs
    mcnemar_p: float
    newcombe: Interval  # of A's rate minus B's
    e_value: float  # after the last pair
    largest_e_value: float  # after any pair: what was decided once stays decided
    verdict: Verdict  # against the margin
    margin: float
    sequential: bool  # the verdict is that of the e-values against the margin, however often one has looked
    above: float  # largest e-value so far for "above the margin"
    below: float  # and for "below the margin"; 2 / ALPHA decides
    episodes_needed: int | None


def compare(a: EpisodeTable, b: EpisodeTable, *, margin: float = 0.0, sequential: bool = False) -> Comparison:
    """Compare two policies.

    Args:
        margin: that A's rate minus B's is compared with, a fraction: -0.02 for "at most 2 pp worse".
        sequential: decide by an e-process, which may be looked at after every episode, instead of by the interval.

    Raises:
        DataError: they are not of the same episodes.
    """
    pairs = pair_episodes(a, b)
    interval = newcombe_paired(pairs.both, pairs.only_a, pairs.only_b, pairs.neither)
    evidence = evidence_of_difference(pairs.differences)
    above, below = evidence_above(pairs.differences, margin), evidence_below(pairs.differences, margin)
    both = len(pairs) or 1
    return Comparison(
        a=a,
        b=b,
        pairs=pairs,
        mcnemar_p=mcnemar(pairs.only_a, pairs.only_b),
        newcombe=interval,
        e_value=float(evidence[-1]) if len(pairs) else 1.0,
        largest_e_value=float(evidence.max(initial=1.0)),
        verdict=_sequential_verdict(above, below) if sequential else _verdict(interval, margin),
        margin=margin,
        sequential=sequential,
        above=float(above.max(initial=1.0)),
        below=float(below.max(initial=1.0)),
        episodes_needed=episodes_needed((pairs.both + pairs.only_a) / both, (pairs.both + pairs.only_b) / both),
    )


def compare_all(
    tables: Sequence[EpisodeTable], *, margin: float = 0.0, sequential: bool = False
) -> list[tuple[Comparison, float]]:
    """Each of several policies with each later one, and McNemar's p-value adjusted by Holm for so many comparisons."""
    found = [compare(a, b, margin=margin, sequential=sequential) for a, b in combinations(tables, 2)]
    return list(zip(found, holm([comparison.mcnemar_p for comparison in found]), strict=True))


def _verdict(interval: Interval, margin: float) -> Verdict:
    if interval[0] > margin:
        return "above"
    return "below" if interval[1] < margin else "undecided"


def _sequential_verdict(above: NDArray[np.float64], below: NDArray[np.float64]) -> Verdict:
    """What the e-process that first reaches its limit says; each of the two has half of alpha."""
    limit = 2 / ALPHA
    reached: dict[Verdict, NDArray[np.int64]] = {
        "above": np.flatnonzero(above >= limit),
        "below": np.flatnonzero(below >= limit),
    }
    first = {verdict: int(at[0]) for verdict, at in reached.items() if len(at)}
    return min(first, key=first.__getitem__) if first else "undecided"

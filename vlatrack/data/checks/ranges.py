"""Are the ranges of actions and states what a policy can learn from?"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vlatrack.data.checks.finding import Finding, Severity
from vlatrack.data.episode_statistics import QUANTILES, ValueStatistics
from vlatrack.tokens.bins import ValueRange

NARROWEST = 1e-6
"""A range that is narrower, absolutely or beside its values, holds nothing but the noise of float32; and what keeps
`ValueRange.normalise` from dividing by 0 distorts it by a hundredth."""
_FEW_VALUES = 3
"""With so many different values a dimension is a switch, such as a gripper: open, closed, and perhaps neither."""
_TOLERANCE = 1e-3
_MOST_CLIPPED = 0.05

Kind = Literal["action", "state"]


@dataclass(frozen=True)
class Ranges:
    """The ranges of actions or of states, and what they were computed from."""

    kind: Kind
    found: Sequence[ValueStatistics]
    ranges: ValueRange
    names: Sequence[str] = ()  # of the dimensions; empty: not known
    as_is: Collection[int] = ()  # dimensions whose range is [-1, 1] by choice

    def place(self, dimension: int) -> str:
        """`action 6 (gripper)`."""
        name = self.names[dimension] if dimension < len(self.names) else ""
        return f"{self.kind} {dimension}" + (f" ({name})" if name and name != f"{self.kind} {dimension}" else "")

    def may_stay(self, dimension: int) -> bool:
        """Whether nothing is lost if the dimension stays as it is; a state that is always the same tells nothing."""
        of = self.found[dimension]
        return self.kind == "state" or max(abs(of.low), abs(of.high)) <= 1 + _TOLERANCE


@dataclass(frozen=True)
class _Useless:
    """A dimension whose range is none."""

    ranges: Ranges
    dimension: int
    check: str
    message: str


def check_ranges(where: str, groups: Sequence[Ranges], method: str | None) -> Iterator[Finding]:
    """Dimensions that are constant, lost between quantiles, not finite, or mostly outside of their range.

    Args:
        where: the dataset, for messages.
        groups: of the actions, and of the states where the policy sees them.
        method: how the ranges were computed; None: they are written by hand.
    """
    useless = []
    for ranges in groups:
        for dimension, of in enumerate(ranges.found):
            place = f"{where}: {ranges.place(dimension)}"
            if of.not_finite:
                message = f"{of.not_finite:,} values are NaN or infinite, the first in episode {of.not_finite_in}"
                yield Finding("error", "not finite", place, message, "leave those episodes out", of.not_finite)
            if not of.count:
                continue
            if dimension in ranges.as_is:
                yield from _check_as_is(place, ranges, dimension)
            elif method is not None and (problem := _useless(ranges, dimension)) is not None:
                useless.append(problem)
            elif method is None or not _is_switch(of):
                low, high = ranges.ranges.low[dimension], ranges.ranges.high[dimension]
                yield from _check_clipping(place, of, low, high)
                yield from _check_outliers(place, of, low, high) if method is not None else ()
    remedy = _keeping(useless, groups, method)
    for problem in useless:
        place = f"{where}: {problem.ranges.place(problem.dimension)}"
        may_stay = problem.ranges.may_stay(problem.dimension)
        yield Finding("error", problem.check, place, problem.message, remedy if may_stay else _by_hand(method))


def _keeping(useless: Sequence[_Useless], groups: Sequence[Ranges], method: str | None) -> str:
    """The one setting that leaves all dimensions as they are that should be, beside those that are already."""
    stay = {ranges.kind: set(ranges.as_is) for ranges in groups}
    for problem in useless:
        if problem.ranges.may_stay(problem.dimension):
            stay[problem.ranges.kind].add(problem.dimension)
    lists = "".join(f", {kind}_as_is: {sorted(dimensions)}" for kind, dimensions in stay.items() if dimensions)
    return f"keep it as it is: tokenizer.statistics={{method: {method}{lists}}}"


def constant_dimensions(ranges: Ranges) -> list[int]:
    """Those that have no range, and may stay as they are."""
    useless = (dimension for dimension in range(len(ranges.found)) if _useless(ranges, dimension) is not None)
    return [dimension for dimension in useless if ranges.may_stay(dimension)]


def _by_hand(method: str | None) -> str:
    by_hand = "write the ranges by hand (tokenizer.statistics.action_low and action_high)"
    return by_hand if method == "minmax" else f"use tokenizer.statistics: minmax, or {by_hand}"


def _useless(ranges: Ranges, dimension: int) -> _Useless | None:
    of, low, high = ranges.found[dimension], ranges.ranges.low[dimension], ranges.ranges.high[dimension]
    if of.high - of.low <= _narrowest(of.low, of.high):
        what = f"is always {of.low:g}" if of.low == of.high else f"is nearly constant, {of.low:g} to {of.high:g}"
        return _Useless(ranges, dimension, "constant", f"{what}, which is no range to normalise by")
    if high - low <= _narrowest(low, high) or (_is_switch(of) and _share_outside(of, low, high)):
        message = (
            f"is lost between the quantiles: {low:g} to {high:g} of {of.low:g} to {of.high:g}, so that "
            f"{_share_outside(of, low, high):.2%} of its values cannot be told from others"
        )
        return _Useless(ranges, dimension, "lost between quantiles", message)
    return None


def _is_switch(of: ValueStatistics) -> bool:
    return of.counts.is_exact and len(of.counts.keys) <= _FEW_VALUES


def _check_as_is(place: str, ranges: Ranges, dimension: int) -> Iterator[Finding]:
    of = ranges.found[dimension]
    if outside := _share_outside(of, -1 - _TOLERANCE, 1 + _TOLERANCE):
        message = f"stays as it is, but {outside:.1%} of its values lie outside [-1, 1] ({of.low:g} to {of.high:g})"
        severity: Severity = "error" if ranges.kind == "action" else "warning"
        yield Finding(severity, "as it is", place, message, f"take it out of {ranges.kind}_as_is")


def _check_clipping(place: str, of: ValueStatistics, low: float, high: float) -> Iterator[Finding]:
    if (share := _share_outside(of, low, high)) > _MOST_CLIPPED:
        message = f"{share:.1%} of its values lie outside {low:g} to {high:g} and are clipped"
        yield Finding("warning", "clipping", place, message, "widen its range in tokenizer.statistics, or use minmax")


def _check_outliers(place: str, of: ValueStatistics, low: float, high: float) -> Iterator[Finding]:
    """Whether a few values take the range for themselves, and nearly all others share a bin or two."""
    inner_low, *_, inner_high = of.quantiles(QUANTILES)
    if inner_high - inner_low < (high - low) / 100:
        message = (
            f"98 % of its values lie within a hundredth of its range ({inner_low:g} to {inner_high:g} of {low:g} to "
            f"{high:g}), in 3 of 256 bins"
        )
        yield Finding("warning", "outliers", place, message, "use tokenizer.statistics: quantiles")


def _narrowest(low: float, high: float) -> float:
    return NARROWEST * max(1.0, abs(low), abs(high))


def _share_outside(of: ValueStatistics, low: float, high: float) -> float:
    values = of.counts.values()
    outside = int(of.counts.counts[(values < low) | (values > high)].sum())
    return outside / of.count if of.count else math.nan

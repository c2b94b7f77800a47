"""The processes that train one policy together, called ranks, as the training sees them.

`Ranks` itself is a process alone, for which every exchange is the identity; `GroupRanks` in process_group.py is one of
several. Each method but `share` is an exchange: all ranks call it, in the same order. Imports no torch, so that the
command line may ask how many there are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from vlatrack.metrics.states import MetricStates

Rule = Literal["sum", "mean", "max"]
"""How values of one name become one value over the ranks that have it."""

T = TypeVar("T")


class RankLostError(Exception):
    """An exchange failed because another process is gone: killed, crashed, or ended by an error of its own."""


class Ranks:
    """This process among those that train together; of this class, it is alone."""

    number = 0
    count = 1
    count_here = 1  # on this machine

    @property
    def is_first(self) -> bool:
        """The first rank writes: run directory, journal, log files, checkpoints, terminal."""
        return self.number == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """The rows of a batch that this rank processes; none if a batch has fewer rows than there are ranks."""
        return rows[self.number :: self.count]

    def gather(self, value: T) -> list[T]:
        """The value of each rank, in the order of their numbers."""
        return [value]

    def from_first(self, value: T) -> T:
        """The first rank's value."""
        return value

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first rank goes through the block before the others begin, and all leave it together.

        If the first one fails there, the others do not begin.
        """
        yield

    def total(self, numbers: Sequence[float]) -> Sequence[float]:
        """Each number, summed over the ranks."""
        return numbers

    def total_sums(self, sums: "MetricStates") -> "MetricStates":
        """Summed over the ranks."""
        return sums

    def sum_gradients(self, parameters: Iterable["nn.Parameter"]) -> None:
        """Give every rank the sum of all gradients; a parameter that no rank has a gradient for stays without."""

    def copy_weights(self, module: "nn.Module") -> None:
        """Give every rank the first one's weights."""

    def combine(self, values: Mapping[str, float], rules: Mapping[str, Rule]) -> dict[str, float]:
        """What all ranks measured, by name; the ranks may have different names, in any order."""
        return combine_by_name(self.gather(dict(values)), rules)

    def gone(self) -> list[int]:
        """The ranks whose process has ended, as far as this machine can see. No exchange."""
        return []


def combine_by_name(measured: Iterable[Mapping[str, float]], rules: Mapping[str, Rule]) -> dict[str, float]:
    """One value for each name, by the name's rule, from the mappings that have it; KeyError for a name without one."""
    collected: dict[str, list[float]] = {}
    for values in measured:
        for name, value in values.items():
            collected.setdefault(name, []).append(value)
    return {name: _combined(values, rules[name]) for name, values in collected.items()}


def _combined(values: Sequence[float], rule: Rule) -> float:
    match rule:
        case "sum":
            return sum(values)
        case "mean":
            return sum(values) / len(values)
        case "max":
            return max(values)

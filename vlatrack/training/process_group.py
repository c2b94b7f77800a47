"""The processes that train one policy together, as the training sees them.

`ProcessGroup` itself is a process alone, for which every exchange is the identity; `TorchProcessGroup` is one of
several. Each method but `shard` is an exchange: all ranks call it, in the same order. Imports no torch, so that the
command line may ask how many there are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from vlatrack.errors import VlatrackError

if TYPE_CHECKING:
    from torch import nn

    from vlatrack.metrics.states import MetricStates

Rule = Literal["sum", "mean", "max"]
"""How values of one name become one value over the ranks that have it."""

T = TypeVar("T")


class RankLostError(VlatrackError):
    """An exchange failed because another process is gone: killed, crashed, or ended by an error of its own."""


class ProcessGroup:
    """This process among those that train together; of this class, it is alone."""

    rank = 0
    world_size = 1
    local_world_size = 1  # on this machine

    @property
    def is_main_process(self) -> bool:
        """Rank 0 writes: run directory, journal, log files, checkpoints, terminal."""
        return self.rank == 0

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """The rows of a batch that this rank processes; none if a batch has fewer rows than there are ranks."""
        return rows[self.rank :: self.world_size]

    def all_gather(self, value: T) -> list[T]:
        """The value of each rank, in the order of the ranks."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        return value

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others begin, and all leave it together.

        If rank 0 fails there, the others do not begin.
        """
        yield

    def sum(self, numbers: Sequence[float]) -> Sequence[float]:
        """Each number, summed over the ranks."""
        return numbers

    def sum_states(self, states: "MetricStates") -> "MetricStates":
        """Summed over the ranks, on the host; the ranks may have states of different names."""
        first, *others = self.all_gather(states.cpu())
        return sum(others, first)

    def all_reduce_gradients(self, parameters: Iterable["nn.Parameter"]) -> None:
        """Give every rank the sum of all gradients; a parameter that no rank has a gradient for stays without."""

    def broadcast_weights(self, module: "nn.Module") -> None:
        """Give every rank the weights of rank 0."""

    def combine(self, values: Mapping[str, float], rules: Mapping[str, Rule]) -> dict[str, float]:
        """What all ranks measured, by name; the ranks may have different names, in any order."""
        return combine_by_name(self.all_gather(dict(values)), rules)

    def lost_ranks(self) -> list[int]:
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

"""The ranks that train one policy together.

`ProcessGroup` is a single process, for which every collective is the identity; `TorchProcessGroup` is one rank of
several. Every method but `shard`, `largest_shard` and `lost_ranks` is a collective: all ranks call it, in the same
order. The module does not import torch, so that the command line can ask for the rank early.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from vlatrack.errors import VlatrackError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vlatrack.metrics.states import MetricStates

Rule = Literal["sum", "mean", "max"]
"""How the values that several ranks have for one name are combined."""

T = TypeVar("T")
R = TypeVar("R", bound="Sequence[Any] | NDArray[Any]")


class RankLostError(VlatrackError):
    """A collective failed because another rank was killed, crashed, or ended with an error."""


class ProcessGroup:
    """A single process: rank 0 of a world of 1."""

    rank = 0
    world_size = 1
    local_world_size = 1  # on this machine
    per_machine = 1  # the processes of each machine, or all of them if machines have different numbers

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which alone writes: run directory, journal, log files, checkpoints, terminal."""
        return self.rank == 0

    def shard(self, rows: R) -> R:
        """The rows of a batch that this rank processes; may be empty if there are fewer rows than ranks."""
        return cast(R, rows[self.rank :: self.world_size])

    def largest_shard(self, rows: int) -> int:
        """How many of so many rows the rank with the most of them has."""
        return -(-rows // self.world_size)

    def all_gather(self, value: T) -> list[T]:
        """The value of each rank, in rank order."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        return value

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others, and all leave it together.

        If rank 0 fails in it, the others do not enter it.
        """
        yield

    def sum(self, numbers: Sequence[float]) -> Sequence[float]:
        """Each number, summed over the ranks."""
        return numbers

    def sum_states(self, states: "MetricStates") -> "MetricStates":
        """States summed over the ranks, on the host; a name may be missing on some ranks."""
        first, *others = self.all_gather(states.cpu())
        return sum(others, first)

    def sum_on_device(self, number: "Tensor") -> "Tensor":
        """A scalar summed over the ranks on their devices, without waiting for them."""
        return number

    @contextmanager
    def noticing_lost_ranks(self) -> Iterator[None]:
        """Raise RankLostError where a collective inside the block, such as one of a sharded policy, fails for that."""
        yield

    def broadcast_weights(self, module: "nn.Module") -> None:
        """Copy the weights of rank 0 to every rank."""

    def combine(self, values: Mapping[str, float], rules: Mapping[str, Rule]) -> dict[str, float]:
        """Values of all ranks combined by the rule of their name; a name may be missing on some ranks."""
        return combine_by_name(self.all_gather(dict(values)), rules)

    def duplicate(self) -> Self:
        """The same ranks once more, for another thread: its collectives do not mix with those of this group."""
        return self

    def lost_ranks(self) -> list[int]:
        """The ranks on this machine whose process has ended. Not a collective."""
        return []


def combine_by_name(measured: Iterable[Mapping[str, float]], rules: Mapping[str, Rule]) -> dict[str, float]:
    """One value for each name, by its rule, from the mappings that have it; KeyError for a name without a rule."""
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

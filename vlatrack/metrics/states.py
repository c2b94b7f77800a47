"""The states that metrics are computed from: named totals and counts, which add up over batches, epochs and ranks.

The mean over a window is total / count of the summed states, so it equals the mean over the concatenation of the
window's batches. torch is imported inside functions, so that the command line can read the metric schema without it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """A total and the number of values summed in each of its elements; the count broadcasts against the total."""

    total: "Tensor"
    count: "Tensor"

    def mean(self) -> "Tensor":
        """The mean of each element, in the total's shape; NaN where the count is 0."""
        return self.total / self.count

    def overall_mean(self) -> float:
        """The mean over all elements, each weighted by its count; 0 without any count."""
        counted = self.count.expand_as(self.total).sum().item()
        return self.total.sum().item() / counted if counted else 0.0


class MetricStates(Mapping[str, State]):
    """States by name: float64, without gradients, immutable.

    They add by name. A name that only one side has is kept, so states of a checkpoint from before a metric was added
    (or removed) can still be added.
    """

    def __init__(self, states: Mapping[str, State] | None = None) -> None:
        self._states = dict(states or {})

    @classmethod
    def of(cls, sums: "Mapping[str, tuple[Tensor, Tensor | float]]") -> "MetricStates":
        """From totals and counts. A count may be a plain number, which is moved to the device without synchronising."""
        import torch

        states = {}
        for name, (total, count) in sums.items():
            if not isinstance(count, torch.Tensor):
                count = torch.full((), count, dtype=torch.float64, device=total.device)
            states[name] = State(total.detach().double(), count.detach().double())
        return cls(states)

    def __getitem__(self, name: str) -> State:
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __add__(self, other: "MetricStates") -> "MetricStates":
        summed = {
            name: State(state.total + other[name].total, state.count + other[name].count)
            for name, state in self.items()
            if name in other
        }
        return MetricStates({**self, **other, **summed})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain numbers, so that no device storage is sent between processes."""
        return _from_lists, (
            {name: (state.total.tolist(), state.count.tolist()) for name, state in self.cpu().items()},
        )

    def where(self, kept: "Tensor") -> "MetricStates":
        """These states if the boolean scalar `kept` is true, else zeros; decided on the device."""
        import torch

        def masked(tensor: "Tensor") -> "Tensor":
            return torch.where(kept, tensor, 0.0)

        return MetricStates({name: State(masked(s.total), masked(s.count)) for name, s in self.items()})

    def to(self, device: "torch.device | str") -> "MetricStates":
        return MetricStates({name: State(s.total.to(device), s.count.to(device)) for name, s in self.items()})

    def cpu(self) -> "MetricStates":
        """These states on the host, with a single copy from the device; some may be there already."""
        import torch

        tensors = [tensor for state in self.values() for tensor in (state.total, state.count)]
        away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
        if not away:
            return self
        flat = torch.cat([tensor.flatten() for tensor in away]).cpu()
        pieces = iter(torch.split(flat, [tensor.numel() for tensor in away]))
        read = (tensor if tensor.device.type == "cpu" else next(pieces).view(tensor.shape) for tensor in tensors)
        return MetricStates({name: State(next(read), next(read)) for name in self})

    def state_dict(self) -> "dict[str, Tensor]":
        """Plain tensors by `<name>.total` and `<name>.count`, for a checkpoint."""
        return {f"{name}.{part}": getattr(state, part) for name, state in self.items() for part in ("total", "count")}

    @classmethod
    def from_state_dict(cls, tensors: "Mapping[str, Tensor]") -> "MetricStates":
        """The inverse of `state_dict`; names that no current metric uses are kept."""
        names = [key.removesuffix(".total") for key in tensors if key.endswith(".total")]
        return cls.of({name: (tensors[f"{name}.total"], tensors[f"{name}.count"]) for name in names})


def _from_lists(states: Mapping[str, tuple[Any, Any]]) -> MetricStates:
    import torch

    return MetricStates(
        {
            name: State(torch.tensor(total, dtype=torch.float64), torch.tensor(count, dtype=torch.float64))
            for name, (total, count) in states.items()
        }
    )


_V1_STATES = {
    "closs": ("cross_entropy", "token_weight"),
    "z_loss": ("z", "tokens"),
    "loss_ct": ("head_error", "action_rows"),
    "l1_loss_action": ("token_error", "action_rows"),
    "acc_action": ("token_hits", "action_rows"),
    "quantisation_floor": ("floor_error", "floor_rows"),
    "acc_image": ("image_hits", "image_tokens"),
}


def states_from_v1(sums: "Mapping[str, Tensor]") -> MetricStates:
    """The states in a checkpoint of vlatrack 0.1.0, which stored totals and counts under names of their own."""
    return MetricStates.of({name: (sums[total], sums[count]) for name, (total, count) in _V1_STATES.items()})

"""Training metrics on their way from the device to a record, without making the device wait."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vlatrack.metrics.states import MetricStates, State
from vlatrack.training.non_finite import NonFiniteGuard
from vlatrack.training.optimisation import StepResult
from vlatrack.training.state import TrainState
from vlatrack.training.throughput import Throughput


def copy_to_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start to copy tensors of one device to the host, all in a single copy; the result waits for this copy, not for
    what the device was given to do after it, and returns them as float64."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    sizes = [tensor.numel() for tensor in tensors]
    arrived = None
    if flat.device.type == "cuda":
        on_host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        flat = on_host.copy_(flat, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

    def read() -> list[Tensor]:
        if arrived is not None:
            arrived.synchronize()
        return [part.view(tensor.shape) for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True)]

    return read


@dataclass(frozen=True)
class PendingRecord:
    """The metrics of a window of steps as of its last one, perhaps still on the device."""

    state: TrainState
    """A copy of the counters at that step."""
    lr: float
    speeds: Callable[[], dict[str, float]]
    _names: tuple[str, ...]
    _values: Callable[[], list[Tensor]]

    @classmethod
    def open(
        cls, state: TrainState, result: StepResult, lr: float, throughput: Throughput, guard: NonFiniteGuard
    ) -> "PendingRecord":
        """End the window of ``state``, of ``throughput`` and of ``guard``, whose last step had ``result``."""
        window = state.take_window()
        tensors = [tensor for part in window.values() for tensor in (part.total, part.count)]
        values = copy_to_host([*guard.take(), result.grad_norm, *tensors])
        return cls(copy(state), lr, throughput.close(), tuple(window), values)

    def check(self, guard: NonFiniteGuard, state: TrainState) -> None:
        """Let the guard act on the steps of the window, and count those that were not taken in ``state``, the present
        one.

        Raises:
            NonFiniteError, RollbackError: as `NonFiniteGuard.check`.
        """
        guard.act(self._values()[:3], state, last_step=self.state.step)
        self.state.skipped_steps = state.skipped_steps

    @property
    def grad_norm(self) -> float:
        return self._values()[3].item()

    @property
    def states(self) -> MetricStates:
        """This rank's metric states of the window, on the host."""
        read = iter(self._values()[4:])
        return MetricStates({name: State(next(read), next(read)) for name in self._names})

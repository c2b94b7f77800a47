"""What a training step holds at its peak, by what holds it, as torch's memory tracker sees it.

The tracker is a private API of torch; tests/training/test_memory.py pins what is relied on here.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.utils.hooks import RemovableHandle

from vlatrack.models.policy import VlaPolicy
from vlatrack.training.distributed import local_part

DEVICE = torch.device("cpu")
"""Stands for the GPU, whose tensors a build of torch for CPUs cannot fake."""
HOST = torch.device("meta")
"""Stands for the memory of the host, where fake tensors wait that are offloaded."""
FORWARD, _BETWEEN = "forward", "between"
Phase = str | int
"""A part of a step: the forward pass; the backward pass from where the gradient of a layer's output is known, for the
first layers (0, 1) and the last ones (-1, -2) by the layer's index; all layers between them together. What precedes
the backward pass of the last layer belongs to it, and what follows that of the first one to that.

The peak of each phase is linear in the number of layers. What lies between leads from the last layers to the first ones
in equal parts, so it is never above both."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes at one moment, by what they hold."""

    weights: int = 0
    gradients: int = 0
    optimizer_states: int = 0
    activations: int = 0
    """Kept for the backward pass, or recomputed in it; with bf16 also the copies of the weights in bf16."""
    temporary: int = 0
    """Gradients of activations, logits, buffers."""
    averages: int = 0
    """Of the weights, over the steps."""

    @property
    def total(self) -> int:
        return sum(astuple(self))


NOTHING = MemoryUse()


class PhaseTracker(MemTracker):  # type: ignore[no-untyped-call]
    """torch's tracker, which keeps the peak of each phase instead of that of the whole step."""

    def __init__(self, offloaded: Sequence[nn.Parameter] = (), *, weights_in_buffers: int = 0) -> None:
        """
        Args:
            offloaded: sharded parameters that are on the host, so that they, their gradients and their optimiser states
                do not count; what FSDP2 gathers of them does.
            weights_in_buffers: bytes of buffers that count as weights, not as buffers.
        """
        super().__init__()
        self._weights_in_buffers = weights_in_buffers
        self.phase: Phase = FORWARD
        self.peaks: dict[Phase, MemoryUse] = {}
        self.host_peak = 0
        """Bytes of activations that wait on ``HOST``, at most."""
        self._offloads = bool(offloaded)
        self._weights_on_host = sum(local_part(parameter).nbytes for parameter in offloaded)
        for parameter in offloaded:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._count_as_gradient)  # type: ignore[no-untyped-call]

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
        """torch's own would hook into the gradient of each parameter, which frozen ones refuse; those that FSDP2
        gathers are other ones than those of the policy."""
        for parameter in module.parameters():
            if not parameter.requires_grad and parameter not in self._param_to_grad_hook_handles:
                self._param_to_grad_hook_handles[parameter] = tuple(RemovableHandle(OrderedDict()) for _ in range(2))
        return super()._track_module_params_and_buffers(module, install_grad_hooks)

    def _count_as_gradient(self, parameter: Tensor) -> None:
        """torch's own does not know what FSDP2 has made the gradient of a sharded parameter from."""
        assert parameter.grad is not None, "it has just been made"
        self._update_and_maybe_create_winfos(local_part(parameter.grad), _MemRefType.GRAD, update_existing=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two thirds of all calls, and none makes a tensor
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    def _update_peak_stats(self, peak_state: Any) -> None:
        """Called after each operation; torch's own looks for the peak of every module, which takes half of the time."""
        now = _memory_use(self._curr_mem_snap[DEVICE], self._weights_in_buffers)
        if self._offloads:
            now = replace(now, weights=now.weights - self._weights_on_host, gradients=0, optimizer_states=0)
        if now.total >= self.peaks.get(self.phase, now).total:
            self.peaks[self.phase] = now
        if HOST in self._curr_mem_snap:
            self.host_peak = max(self.host_peak, _memory_use(self._curr_mem_snap[HOST], 0).total)


def _memory_use(snapshot: dict[Any, int], weights_in_buffers: int) -> MemoryUse:
    kind = _MemRefType
    return MemoryUse(
        weights=snapshot[kind.PARAM] + weights_in_buffers,
        gradients=snapshot[kind.GRAD],
        optimizer_states=snapshot[kind.OPT],
        activations=snapshot[kind.ACT],
        temporary=snapshot[kind.TEMP] + snapshot[kind.BUFFER] + snapshot[kind.OTH] - weights_in_buffers,
    )


def mark_phases(tracker: PhaseTracker, policy: VlaPolicy, edge: int) -> list[Any]:
    """Hooks that begin each phase: those of the backward pass when the gradient of a layer's output is known."""
    depth = len(policy.backbone.blocks)

    def begin(phase: Phase) -> None:
        tracker.phase = phase

    def in_backward(phase: Phase) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            hidden: Tensor = output if isinstance(output, Tensor) else output[0]
            if hidden.requires_grad:  # it need not where the layers before are frozen
                hidden.register_hook(lambda _gradient: begin(phase))  # type: ignore[no-untyped-call]

        return hook

    hooks = [policy.register_forward_hook(lambda *_: begin(-1))]
    for number, block in enumerate(policy.backbone.blocks):
        from_end = number - depth
        phase: Phase = number if number < edge else from_end if from_end >= -edge else _BETWEEN
        hooks.append(block.register_forward_hook(in_backward(phase)))
    return hooks

"""The memory of a training at its peak, predicted without a GPU and without allocating it.

One optimiser step runs on fake tensors, which have a shape but no contents, while torch's tracker adds up their
storages. Of several processes one runs, on a fake process group whose collectives do nothing. Fake tensors, process
group and tracker are private APIs of torch: they are used in this module alone, and tests/training/test_memory.py pins
what it relies on.

The memory at any moment of a step is linear in the number of decoder layers, so two and three layers tell that of any
number. The peak itself is not: in a shallow model it may lie at the end of the backward pass, where all gradients
exist, and in a deep one at its beginning, where all activations do. Hence each phase is extrapolated by itself.
"""

import gc
import math
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.hooks import RemovableHandle

from vlatrack.errors import BackboneError
from vlatrack.models.losses.token_losses import logits_at_once_as_on
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.distributed import distribute, process_mesh
from vlatrack.training.optimisation import train_step
from vlatrack.training.process_group import ProcessGroup

_CPU = torch.device("cpu")
_FORWARD, _BETWEEN = "forward", "between"
Phase = str | int
"""A part of a step: the forward pass; the backward pass from where the gradient of a layer's output is known, for the
first layers (0, 1) and the last ones (-1, -2) by the layer's index; all layers between them together. What precedes
the backward pass of the last layer belongs to it, and what follows that of the first one to that.

The peak of each phase is linear in the number of layers. What lies between leads from the last layers to the first ones
in equal parts, so it is never above both."""
_NOT_FAKE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,  # reading a tensor on the meta device
)


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

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer_states + self.activations + self.temporary


@dataclass(frozen=True)
class MemoryPrediction:
    """What a policy and one training step of it need of each process."""

    parameters: int
    trainable: int
    whole: MemoryUse
    """Weights, gradients and optimiser states that the process holds, whether or not all exist at the peak."""
    peak: MemoryUse
    rows: int
    tokens: int  # of each row


@dataclass(frozen=True)
class StepSettings:
    """How the step is taken; the fields mean what they mean in the experiment's YAML."""

    optimizer: Callable[[VlaPolicy], torch.optim.Optimizer]
    clip_grad: float | None
    bf16: bool
    accumulates: bool
    """Whether the gradients of an earlier micro batch are there already."""
    shape: tuple[int, int] = (1, 1)
    """Copies of the policy, and processes over which each of them is sharded."""

    @property
    def edge(self) -> int:
        """The number of layers at either end whose backward pass is unlike that of the layers between them. FSDP2
        gathers the weights of a layer while the one after it still has its own."""
        return 1 if self.shape == (1, 1) else 2


def predict_memory(
    build: Callable[[], VlaPolicy],
    batch: Batch,
    settings: StepSettings,
    *,
    extrapolate: bool = True,
) -> MemoryPrediction:
    """Predict the memory of one optimiser step of one process.

    Args:
        build: makes the policy; it is called on the meta device, and must not read weights.
        batch: the micro batch of the step, in ordinary tensors.
        extrapolate: from a few decoder layers to the policy's own number, which is exact if they are alike; false: all
            of them are followed, which takes about twice as long for 32.

    Raises:
        BackboneError: the policy cannot run without the contents of its tensors.
    """
    try:
        with _processes(settings.shape) as mesh:
            return _Prediction(build, settings, mesh).of(batch, extrapolate)
    except _NOT_FAKE as error:
        _release_frames(error)
        raise BackboneError(
            "the memory cannot be predicted: a backbone or a loss term reads the values of a tensor on the host "
            f"({error}); compute with tensors alone"
        ) from None
    except BaseException as error:
        _release_frames(error)
        raise
    finally:
        gc.collect()  # fake tensors that live until the interpreter ends may crash it


def _release_frames(error: BaseException) -> None:
    """Let go of the local variables, fake tensors among them, that an exception holds."""
    traceback.clear_frames(error.__traceback__)


@contextmanager
def _processes(shape: tuple[int, int]) -> Iterator[DeviceMesh | None]:
    """The mesh that rank 0 of so many processes sees; None for one process alone."""
    if shape == (1, 1):
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=math.prod(shape), store=FakeStore())
    try:
        yield process_mesh(shape, _CPU)
    finally:
        dist.destroy_process_group()


class _Prediction:
    """The prediction of one process's memory, on fake tensors of one mode."""

    def __init__(self, build: Callable[[], VlaPolicy], settings: StepSettings, mesh: DeviceMesh | None) -> None:
        self._build, self._settings, self._mesh = build, settings, mesh
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def of(self, batch: Batch, extrapolate: bool) -> MemoryPrediction:
        with torch.device("meta"):
            policy = self._build()
        parameters = [parameter.numel() for parameter in policy.parameters()]
        trainable = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
        depth, few = len(policy.backbone.blocks), 2 * self._settings.edge
        if extrapolate and depth > few + 1 and _alike(policy.backbone.blocks):
            (whole, peaks), (more_whole, more_peaks) = (self._uses(batch, blocks) for blocks in (few, few + 1))
            whole = _extrapolated(whole, more_whole, depth - few)
            peaks = {phase: _extrapolated(peaks[phase], more_peaks[phase], depth - few) for phase in peaks}
        else:
            whole, peaks = self._uses(batch, depth)
        peak = max(peaks.values(), key=lambda use: use.total)
        return MemoryPrediction(sum(parameters), sum(trainable), whole, peak, *batch.input_ids.shape)

    def _uses(self, batch: Batch, depth: int) -> tuple[MemoryUse, dict[Phase, MemoryUse]]:
        """The memory with so many decoder layers: what is held all the time, and the peak of each phase of a step."""
        policy, settings = self._policy(depth), self._settings
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors: dict[str, Any] = {
            name: self._fake.from_tensor(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        with self._fake, logits_at_once_as_on("cuda"):
            optimizer = used_optimizer(policy, settings)
            held = _held(policy, optimizer)
            if not settings.accumulates:
                optimizer.zero_grad(set_to_none=True)
            return held, peaks_of_step(policy, optimizer, replace(batch, **tensors), settings)

    def _policy(self, depth: int) -> VlaPolicy:
        """This process's part of the policy with its first ``depth`` decoder layers."""
        with torch.device("meta"):  # not in fake mode, in which building a large model has crashed torch 2.13
            policy = self._build().train()
        del policy.backbone.blocks[depth:]
        with self._fake:
            _leave_meta(policy)
            distribute(policy, self._mesh)
        return policy


def _held(policy: VlaPolicy, optimizer: torch.optim.Optimizer) -> MemoryUse:
    """Weights, gradients and states, all of which exist when the optimiser takes its step."""
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return MemoryUse(_bytes(policy.parameters()), _bytes(gradients), _bytes(states))


def used_optimizer(policy: VlaPolicy, settings: StepSettings) -> torch.optim.Optimizer:
    """An optimiser that has taken a step, so that it has its states; each parameter that is trained has a gradient."""
    optimizer = settings.optimizer(policy)
    if isinstance(optimizer, CompactAdamW):
        optimizer.at_once = 1 << 25  # fewer parts to follow; a GPU, which compiles them, has none at all
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def _leave_meta(module: nn.Module) -> None:
    """Replace what is on the meta device by fake tensors on the CPU; tensors that are one stay one."""
    made: dict[Tensor, Tensor] = {}

    def fake(value: Tensor) -> Tensor:
        empty = torch.empty(value.shape, dtype=value.dtype, device=_CPU)
        return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty

    for owner in module.modules():
        own = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        for name, value in own:
            if value.is_meta:
                setattr(owner, name, made.setdefault(value, fake(value)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    held = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _alike(blocks: Iterable[nn.Module]) -> bool:
    """Whether the same parameters are trained in each of them."""
    trained = {tuple(parameter.requires_grad for parameter in block.parameters()) for block in blocks}
    return len(trained) == 1


def _extrapolated(use: MemoryUse, one_more: MemoryUse, blocks: int) -> MemoryUse:
    """The use with ``blocks`` more decoder layers, from the uses without any and with one of them."""
    return MemoryUse(*(a + (b - a) * blocks for a, b in zip(astuple(use), astuple(one_more), strict=True)))


def peaks_of_step(
    policy: VlaPolicy, optimizer: torch.optim.Optimizer, batch: Batch, settings: StepSettings
) -> dict[Phase, MemoryUse]:
    """The peak of each phase of a step of one micro batch, in fake tensors or in real ones on the CPU."""
    tracker = _PhaseTracker()
    tracker.track_external(policy, optimizer)
    tracker.expect_no_gradients([parameter for parameter in policy.parameters() if not parameter.requires_grad])
    hooks = _mark_phases(tracker, policy, settings.edge)
    lr = optimizer.param_groups[0]["lr"]
    counts = policy.loss_counts(batch)
    with tracker:
        train_step(
            policy,
            optimizer,
            [batch],
            counts,
            accelerator=_Arithmetic(settings.bf16),
            group=ProcessGroup(),
            lr=lr,
            clip_grad=settings.clip_grad,
            trains_head=len(batch.action_rows) > 0,
        )
    for hook in hooks:
        hook.remove()
    return tracker.peaks


class _Arithmetic:
    """What `train_step` uses of an Accelerator, of which a process can only have those of one precision."""

    device = _CPU

    def __init__(self, bf16: bool) -> None:
        self._bf16 = bf16

    def autocast(self) -> torch.autocast:
        return torch.autocast(_CPU.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class _PhaseTracker(MemTracker):  # type: ignore[no-untyped-call]
    """torch's tracker, which keeps the peak of each phase instead of that of the whole step."""

    def __init__(self) -> None:
        super().__init__()
        self.phase: Phase = _FORWARD
        self.peaks: dict[Phase, MemoryUse] = {}

    def expect_no_gradients(self, frozen: Iterable[Tensor]) -> None:
        """torch's own would hook into the gradient of each parameter, which frozen ones refuse."""
        for parameter in frozen:
            self._param_to_grad_hook_handles[parameter] = tuple(RemovableHandle(OrderedDict()) for _ in range(2))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two thirds of all calls, and none makes a tensor
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    def _update_peak_stats(self, peak_state: Any) -> None:
        """Called after each operation; torch's own looks for the peak of every module, which takes half of the time."""
        now = _memory_use(self._curr_mem_snap[_CPU])
        if now.total >= self.peaks.get(self.phase, now).total:
            self.peaks[self.phase] = now


def _memory_use(snapshot: dict[Any, int]) -> MemoryUse:
    kind = _MemRefType
    return MemoryUse(
        weights=snapshot[kind.PARAM],
        gradients=snapshot[kind.GRAD],
        optimizer_states=snapshot[kind.OPT],
        activations=snapshot[kind.ACT],
        temporary=snapshot[kind.TEMP] + snapshot[kind.BUFFER] + snapshot[kind.OTH],
    )


def _mark_phases(tracker: _PhaseTracker, policy: VlaPolicy, edge: int) -> list[Any]:
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

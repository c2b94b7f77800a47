"""The memory of a training at its peak, predicted without a GPU and without allocating it.

One optimiser step runs on fake tensors, which have a shape but no contents, while torch's tracker adds up their
storages. Of several processes one runs, on a fake process group whose collectives do nothing. Fake tensors, process
group and tracker are private APIs of torch: they are used here and in `memory_tracker` alone, and
tests/training/test_memory.py pins what is relied on.

The memory at any moment of a step is linear in the number of decoder layers, so two and three layers tell that of any
number. The peak itself is not: in a shallow model it may lie at the end of the backward pass, where all gradients
exist, and in a deep one at its beginning, where all activations do. Hence each phase is extrapolated by itself.
"""

import gc
import math
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from itertools import chain
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
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from vlatrack.errors import BackboneError
from vlatrack.models.backbones.activations import host_as
from vlatrack.models.backbones.four_bits import count_weights, four_bit_layers, weights_of
from vlatrack.models.losses.token_losses import logits_at_once_as_on
from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import sum_gradients_in_fp32
from vlatrack.tokens.batch import Batch
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.distributed import distribute, local_part, process_mesh
from vlatrack.training.memory_tracker import DEVICE, HOST, NOTHING, MemoryUse, Phase, PhaseTracker, mark_phases
from vlatrack.training.optimisation import train_step
from vlatrack.training.process_group import ProcessGroup

_NOT_FAKE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,  # reading a tensor on the meta device
)


@dataclass(frozen=True)
class MemoryPrediction:
    """What a policy and one training step of it need of each process."""

    parameters: int
    trainable: int
    whole: MemoryUse
    """Weights, gradients, optimiser states and averages that the process holds on its GPU, whether or not all exist at
    the peak."""
    peak: MemoryUse
    """On the GPU."""
    rows: int
    tokens: int  # of each row
    host: MemoryUse = NOTHING
    """What it holds in the host's memory, since it is offloaded."""


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
    offloads: bool = False
    """Whether parameters, gradients and optimiser states are in the host's memory."""
    averages: bool = False
    """Whether the trained weights are averaged over the steps."""
    fp32_gradients: bool = False
    """Whether gradients of bf16 parameters are summed in fp32."""

    @property
    def wrapped(self) -> bool:
        """Whether FSDP2 gathers weights before they are used."""
        return self.offloads or self.shape != (1, 1)

    @property
    def edge(self) -> int:
        """The number of layers at either end whose backward pass is unlike that of the layers between them. FSDP2
        gathers the weights of a layer while the one after it still has its own."""
        return 2 if self.wrapped else 1


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
        with _processes(settings) as mesh:
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
def _processes(settings: StepSettings) -> Iterator[DeviceMesh | None]:
    """The mesh that rank 0 of all processes sees; None where there is none."""
    if not settings.wrapped:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=math.prod(settings.shape), store=FakeStore())
    try:
        yield process_mesh(settings.shape, DEVICE, offloads=settings.offloads)
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
        trainable = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
        depth, few = len(policy.backbone.blocks), 2 * self._settings.edge
        if extrapolate and depth > few + 1 and _alike(policy.backbone.blocks):
            one, more = (self._uses(batch, blocks) for blocks in (few, few + 1))
            use = one.extrapolated(more, depth - few)
        else:
            use = self._uses(batch, depth)
        peak = max(use.peaks.values(), key=lambda at_peak: at_peak.total)
        rows, tokens = batch.input_ids.shape
        return MemoryPrediction(count_weights(policy), sum(trainable), use.held, peak, rows, tokens, use.host)

    def _uses(self, batch: Batch, depth: int) -> "_StepUse":
        """The memory with so many decoder layers."""
        policy, settings = self._policy(depth), self._settings
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors: dict[str, Any] = {
            name: self._fake.from_tensor(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        with self._fake, logits_at_once_as_on("cuda"), host_as(HOST):
            optimizer = used_optimizer(policy, settings)
            held = _held(policy, optimizer, averages=settings.averages)
            if not settings.accumulates:
                optimizer.zero_grad(set_to_none=True)
            peaks, activations = peaks_of_step(policy, optimizer, replace(batch, **tensors), settings)
        if settings.offloads:
            return _StepUse(NOTHING, replace(held, activations=activations), peaks)
        peaks = {phase: replace(peak, averages=held.averages) for phase, peak in peaks.items()}
        return _StepUse(held, MemoryUse(activations=activations), peaks)

    def _policy(self, depth: int) -> VlaPolicy:
        """This process's part of the policy with its first ``depth`` decoder layers."""
        with torch.device("meta"):  # not in fake mode, in which building a large model has crashed torch 2.13
            policy = self._build().train()
        del policy.backbone.blocks[depth:]
        with self._fake:
            _leave_meta(policy)
            distribute(policy, self._mesh, offload=self._settings.offloads)
        return policy


@dataclass(frozen=True)
class _StepUse:
    """The memory of one process with some number of decoder layers."""

    held: MemoryUse  # on the GPU, all the time
    host: MemoryUse
    peaks: dict[Phase, MemoryUse]  # on the GPU, in each phase of a step

    def extrapolated(self, one_more: "_StepUse", blocks: int) -> "_StepUse":
        """The memory with ``blocks`` more decoder layers, from that with one more."""
        peaks = {phase: _extrapolated(peak, one_more.peaks[phase], blocks) for phase, peak in self.peaks.items()}
        held = _extrapolated(self.held, one_more.held, blocks)
        return _StepUse(held, _extrapolated(self.host, one_more.host, blocks), peaks)


def _held(policy: VlaPolicy, optimizer: torch.optim.Optimizer, *, averages: bool) -> MemoryUse:
    """Weights, gradients and states, all of which exist when the optimiser takes its step, and averages in fp32."""
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    averaged = sum(4 * local_part(parameter).numel() for parameter in policy.parameters() if parameter.requires_grad)
    return MemoryUse(
        _bytes(weights_of(policy)), _bytes(gradients), _bytes(states), averages=averaged if averages else 0
    )


def used_optimizer(policy: VlaPolicy, settings: StepSettings) -> torch.optim.Optimizer:
    """An optimiser that has taken a step, so that it has its states; each parameter that is trained has a gradient."""
    optimizer = settings.optimizer(policy)
    if isinstance(optimizer, CompactAdamW):
        optimizer.at_once = 1 << 25  # fewer parts to follow; a GPU, which compiles them, has none at all
    if settings.fp32_gradients:
        sum_gradients_in_fp32(policy)
    dtype = torch.float32 if settings.fp32_gradients else None
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter, dtype=dtype) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def _leave_meta(module: nn.Module) -> None:
    """Replace what is on the meta device by fake tensors on the CPU; tensors that are one stay one."""
    made: dict[Tensor, Tensor] = {}

    def fake(value: Tensor) -> Tensor:
        empty = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
        return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty

    for owner in module.modules():
        own = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        for name, value in own:
            if value.is_meta:
                setattr(owner, name, made.setdefault(value, fake(value)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local_part(tensor).nbytes for tensor in tensors)


def _bytes_of(module: nn.Module) -> int:
    return _bytes(module.parameters())


def _alike(blocks: Iterable[nn.Module]) -> bool:
    """Whether the same parameters are trained in each of them."""
    trained = {tuple(parameter.requires_grad for parameter in block.parameters()) for block in blocks}
    return len(trained) == 1


def _extrapolated(use: MemoryUse, one_more: MemoryUse, blocks: int) -> MemoryUse:
    """The use with ``blocks`` more decoder layers, from the uses without any and with one of them."""
    return MemoryUse(*(a + (b - a) * blocks for a, b in zip(astuple(use), astuple(one_more), strict=True)))


def peaks_of_step(
    policy: VlaPolicy, optimizer: torch.optim.Optimizer, batch: Batch, settings: StepSettings
) -> tuple[dict[Phase, MemoryUse], int]:
    """The peak of each phase of a step of one micro batch, in fake tensors or in real ones on the CPU, and the bytes of
    activations that wait on the fake host."""
    in_buffers = _bytes(chain.from_iterable(layer.buffers() for layer in four_bit_layers(policy)))
    tracker = PhaseTracker(list(policy.parameters()) if settings.offloads else (), weights_in_buffers=in_buffers)
    tracker.track_external(policy, optimizer)
    hooks = mark_phases(tracker, policy, settings.edge)
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
    # A GPU gets a copy of a layer, from which FSDP2 makes the gathered one; a CPU needs none.
    copied = max(map(_bytes_of, policy.backbone.blocks)) if settings.offloads else 0
    peaks = {phase: replace(peak, temporary=peak.temporary + copied) for phase, peak in tracker.peaks.items()}
    return peaks, tracker.host_peak


class _Arithmetic:
    """What `train_step` uses of an Accelerator, of which a process can only have those of one precision."""

    device = DEVICE

    def __init__(self, bf16: bool) -> None:
        self._bf16 = bf16

    def autocast(self) -> torch.autocast:
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

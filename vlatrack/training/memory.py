"""The memory of a training at its peak, predicted without a GPU and without allocating it.

One optimiser step runs on fake tensors, which have a shape but no contents, while torch's tracker adds up their
storages. Fake tensors and tracker are private APIs of torch: they are used in this module alone, and
tests/training/test_memory.py pins what it relies on.

The memory at any moment of a step is linear in the number of decoder layers, so two and three layers tell that of any
number. The peak itself is not: in a shallow model it may lie at the end of the backward pass, where all gradients
exist, and in a deep one at its beginning, where all activations do. Hence each phase is extrapolated by itself.
"""

import gc
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.utils.hooks import RemovableHandle

from vlatrack.errors import BackboneError
from vlatrack.models.losses.token_losses import logits_at_once_as_on
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.training.optimisation import train_step
from vlatrack.training.process_group import ProcessGroup

_CPU = torch.device("cpu")
_FEW = (2, 3)  # decoder layers, from which any number of them is extrapolated
_FORWARD, _LAST_LAYER, _BETWEEN, _FIRST_LAYER = "forward", "last layer", "between", "first layer"
"""Phases of a step: the forward pass, the backward pass up to and with the last decoder layer, and that of the first
layer with all that follows. The peak of each is linear in the number of layers. What lies between the last layer and
the first leads from the one to the other in equal parts, so it is never above both."""
_NOT_FAKE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


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
    """What a policy and one training step of it need."""

    parameters: int
    trainable: int
    whole: MemoryUse
    """Weights, gradients and optimiser states of the whole policy, whether or not all exist at the peak."""
    peak: MemoryUse
    rows: int
    tokens: int  # of each row


@dataclass(frozen=True)
class StepSettings:
    """How the step is taken; the fields mean what they mean in the experiment's YAML."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    clip_grad: float | None
    bf16: bool
    accumulates: bool
    """Whether the gradients of an earlier micro batch are there already."""


def predict_memory(
    build: Callable[[], VlaPolicy],
    batch_of: Callable[[VlaPolicy], Batch],
    settings: StepSettings,
    *,
    extrapolate: bool = True,
) -> MemoryPrediction:
    """Predict the memory of one optimiser step of one process.

    Args:
        build: makes the policy; it is called with fake tensors, and must not read weights.
        batch_of: the micro batch of the step, in ordinary tensors.
        extrapolate: from two and three decoder layers to the policy's own number, which is exact if they are alike;
            false: all of them are followed, which takes about twice as long for 32.

    Raises:
        BackboneError: the policy cannot run without the contents of its tensors.
    """
    try:
        return _predict(build, batch_of, settings, extrapolate)
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


def _predict(
    build: Callable[[], VlaPolicy], batch_of: Callable[[VlaPolicy], Batch], settings: StepSettings, extrapolate: bool
) -> MemoryPrediction:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, warnings.catch_warnings():
        # Copies of modules, as nn.TransformerEncoder makes them, ask for the address of their tensors.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        with _modules_stay():
            policy = build().train()
    parameters = [parameter.numel() for parameter in policy.parameters()]
    trainable = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
    batch = batch_of(policy)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors: dict[str, Any] = {n: fake.from_tensor(value) for n, value in values.items() if isinstance(value, Tensor)}
    with fake, logits_at_once_as_on("cuda"):
        whole = _whole(policy, settings)
        peak = _peak(policy, replace(batch, **tensors), settings, extrapolate)
    return MemoryPrediction(sum(parameters), sum(trainable), whole, peak, *batch.input_ids.shape)


@contextmanager
def _modules_stay() -> Iterator[None]:
    """Let `module.to` do nothing: peft moves adapters that it has just made, and fake tensors refuse to be moved."""
    to = nn.Module.to
    nn.Module.to = lambda module, *_args, **_kwargs: module  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.to = to  # type: ignore[method-assign]


def _whole(policy: VlaPolicy, settings: StepSettings) -> MemoryUse:
    optimizer = _used_optimizer(policy, settings)
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return MemoryUse(_bytes(policy.parameters()), _bytes(gradients), _bytes(states))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _used_optimizer(policy: VlaPolicy, settings: StepSettings) -> torch.optim.Optimizer:
    """An optimiser that has taken a step, so that it has its states; each parameter has a gradient."""
    optimizer = settings.optimizer(policy)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def _peak(policy: VlaPolicy, batch: Batch, settings: StepSettings, extrapolate: bool) -> MemoryUse:
    blocks, (few, more) = policy.backbone.blocks, _FEW
    depth = len(blocks)
    if not extrapolate or depth <= more or not _alike(blocks):
        return max(_peaks(policy, batch, settings).values(), key=lambda use: use.total)
    del blocks[more:]
    of_more = _peaks(policy, batch, settings)
    del blocks[few:]
    of_few = _peaks(policy, batch, settings)
    phases = [phase for phase in (_FORWARD, _LAST_LAYER, _FIRST_LAYER) if phase in of_few]
    peaks = [_extrapolated(of_few[phase], of_more[phase], depth - few) for phase in phases]
    return max(peaks, key=lambda use: use.total)


def _alike(blocks: Iterable[nn.Module]) -> bool:
    """Whether the same parameters are trained in each of them."""
    trained = {tuple(parameter.requires_grad for parameter in block.parameters()) for block in blocks}
    return len(trained) == 1


def _extrapolated(use: MemoryUse, one_more: MemoryUse, blocks: int) -> MemoryUse:
    """The use with ``blocks`` more decoder layers, from the uses without any and with one of them."""
    return MemoryUse(*(a + (b - a) * blocks for a, b in zip(astuple(use), astuple(one_more), strict=True)))


def _peaks(policy: VlaPolicy, batch: Batch, settings: StepSettings) -> dict[str, MemoryUse]:
    """The peak of each phase of a step."""
    optimizer = _used_optimizer(policy, settings)
    if not settings.accumulates:
        optimizer.zero_grad(set_to_none=True)
    tracker = _PhaseTracker()
    tracker.track_external(policy, optimizer)
    tracker.expect_no_gradients([parameter for parameter in policy.parameters() if not parameter.requires_grad])
    hooks = _mark_phases(tracker, policy)
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
        return torch.autocast(_CPU.type, torch.bfloat16, enabled=self._bf16)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class _PhaseTracker(MemTracker):  # type: ignore[no-untyped-call]
    """torch's tracker, which keeps the peak of each phase instead of that of the whole step."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = _FORWARD
        self.peaks: dict[str, MemoryUse] = {}

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


def _mark_phases(tracker: _PhaseTracker, policy: VlaPolicy) -> list[Any]:
    """Hooks that begin each phase: those of the backward pass when the gradient of a layer's output is known."""

    def begin(phase: str) -> None:
        tracker.phase = phase

    def in_backward(phase: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            hidden: Tensor = output if isinstance(output, Tensor) else output[0]
            if hidden.requires_grad:  # it does not where all layers up to this one are frozen
                hidden.register_hook(lambda _gradient: begin(phase))  # type: ignore[no-untyped-call]

        return hook

    first, *others = policy.backbone.blocks
    hooks = [policy.register_forward_hook(lambda *_: begin(_LAST_LAYER))]
    if others:
        hooks.append([first, *others][-2].register_forward_hook(in_backward(_BETWEEN)))
    hooks.append(first.register_forward_hook(in_backward(_FIRST_LAYER)))
    return hooks

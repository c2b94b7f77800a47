"""What of a block's activations is kept for the backward pass; the rest is computed again in it.

The numbers of a step are the same to the last bit: random generators are set back before a block is computed again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Keep = Literal["all", "all_matmuls", "every_second", "none"]
"""What is kept: everything; the results of attention and of all matrix products, or of every second product; nothing
but the input of each block."""

_host: ContextVar[torch.device | None] = ContextVar("_host", default=None)
_aten: Any = torch.ops.aten
_MATMULS = {_aten.mm.default, _aten.addmm.default, _aten._scaled_mm.default}
_IN_FOUR_BITS = "bitsandbytes.gemm_4bit.default"  # exists once that package has been imported
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def keep_activations(blocks: Iterable[nn.Module], keep: Keep) -> None:
    """Let each block keep no more than ``keep`` of its activations; before or after it is compiled or sharded."""
    if keep == "all":
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if keep != "none":
        how["context_fn"] = partial(_contexts, 1 if keep == "all_matmuls" else 2)
    for block in blocks:
        block.forward = _recomputed(block.forward, how)


def offload_activations(backbone: nn.Module) -> None:
    """Let what ``backbone`` keeps for the backward pass wait in the host's memory; its weights stay where they are."""
    forward = backbone.forward

    def offloaded(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(_to_host, _from_host):
            return forward(*args, **kwargs)

    backbone.forward = offloaded


@contextmanager
def host_as(device: torch.device) -> Iterator[None]:
    """Let another device stand for the host's memory, so that the need of it can be predicted."""
    token = _host.set(device)
    try:
        yield
    finally:
        _host.reset(token)


def _to_host(kept: Tensor) -> tuple[torch.device, Tensor]:
    source = kept if kept._base is None else kept._base
    if isinstance(source, nn.Parameter):
        return kept.device, kept
    on_host = torch.empty(kept.shape, dtype=kept.dtype, device=_host.get(), pin_memory=kept.is_cuda)
    # The copy back is queued behind this one on the same stream, so that neither has to be waited for.
    return kept.device, on_host.copy_(kept, non_blocking=kept.is_cuda)


def _from_host(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, kept = packed
    return kept.to(device, non_blocking=True)


def _recomputed(forward: Callable[..., Any], how: Mapping[str, Any]) -> Callable[..., Any]:
    # Around `forward` rather than the whole call, so that hooks such as those of FSDP2 run once. A function, since
    # torch.compile does not look into a functools.partial.
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **how, **kwargs)

    return recomputed


def _contexts(every: int) -> Any:
    """The contexts of one forward pass of a block, which keep every so many-th of its matrix products."""
    # The block counts its products twice, when it is first computed and when it is computed again.
    products = {False: count(), True: count()}

    def policy(context: SelectiveCheckpointContext, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        is_kept = operation in _ATTENTION
        if operation in _MATMULS or str(operation) == _IN_FOUR_BITS:
            is_kept = next(products[context.is_recompute]) % every == 0
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

"""Matrix products in fp8: the linear layers of the decoder, by torchao."""

import torch
from torch import nn

from vlatrack.errors import MissingPackageError, SpecError

_OLDEST = (8, 9)
_TILE = 16
"""Sides that are no multiple of this have no kernel in fp8."""


def check_float8(device: torch.device) -> None:
    """Check that the device multiplies in fp8, and that torchao is installed.

    Raises:
        SpecError: it is a CPU or an older GPU.
        MissingPackageError: torchao is missing.
    """
    place = "train.precision: fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper)"
    if device.type != "cuda":
        raise SpecError(f"{place}, and this is a CPU; use bf16")
    found = torch.cuda.get_device_capability(device)
    if found < _OLDEST:
        raise SpecError(f"{place}, and this one has {found[0]}.{found[1]}; use bf16")
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise MissingPackageError("train.precision: fp8 needs torchao: pip install 'vlatrack[scale]'") from None


def use_float8(blocks: nn.ModuleList, *, emulate: bool = False) -> int:
    """Let the linear layers of these decoder layers multiply in fp8, with a scale for each tensor, computed each time.

    Weights, their names and the hooks of the layers stay as they are, as do layers with a side that is no multiple of
    16. Call it before the policy is sharded or compiled.

    Args:
        emulate: round to fp8 and multiply in float32, which every device can.

    Returns:
        how many linear layers multiply in fp8.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    chosen = {
        name: layer
        for name, layer in blocks.named_modules()
        if type(layer) is nn.Linear and not layer.in_features % _TILE and not layer.out_features % _TILE
    }
    convert_to_float8_training(
        blocks, module_filter_fn=lambda _, name: name in chosen, config=Float8LinearConfig(emulate=emulate)
    )
    for name, layer in chosen.items():  # such as residual dropout
        blocks.get_submodule(name)._forward_hooks.update(layer._forward_hooks)
    return len(chosen)

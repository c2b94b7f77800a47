"""The dtype that the parameters of a module are stored in."""

import torch
from torch import nn


def store_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the parameters of a module, which may be on the meta device, in ``dtype``; tied ones stay tied.

    Buffers keep their dtype: in bf16, the frequencies of rotary embeddings or the centres of bins would be wrong.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.is_floating_point() and parameter.dtype != dtype:
                if parameter not in made:
                    made[parameter] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                part.register_parameter(name, made[parameter])

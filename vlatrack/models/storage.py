"""The dtype that the parameters of a module, and their gradients, are stored in."""

import torch
from torch import Tensor, nn


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


def sum_gradients_in_fp32(module: nn.Module) -> None:
    """From now on the gradients of trained parameters, sharded or not, are float32, so that the backward passes of many
    micro batches add up exactly; in bf16 a sum loses what is below its last bit.

    To be called when the module has been sharded.
    """

    def widen(parameter: Tensor) -> None:
        if parameter.grad is not None and parameter.grad.dtype != torch.float32:
            parameter.grad = parameter.grad.float()  # to which both autograd and FSDP2 add in place

    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.grad_dtype = None  # any
            parameter.register_post_accumulate_grad_hook(widen)  # type: ignore[no-untyped-call]

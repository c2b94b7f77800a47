"""Dropout whose random numbers do not cost more than the layers around it."""

import torch
from torch import Tensor


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """As `torch.dropout`, with other random numbers on a CPU.

    There torch draws each of them alone and in double precision, which takes most of the time of a small layer. Here
    the generator's 64 bits decide on two elements, with a probability that is exact to 2^-32.
    """
    if not training or probability in (0, 1) or x.device.type != "cpu":
        return torch.dropout(x, probability, training)
    bits = torch.empty((x.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
    drawn = bits.view(torch.int32)[: x.numel()].view(x.shape)
    # In the dtype of x at once: to multiply by booleans takes three times as long.
    kept = torch.ge(drawn, int(probability * 2**32) - 2**31, out=torch.empty(x.shape, dtype=x.dtype))
    return x * kept.div_(1 - probability)

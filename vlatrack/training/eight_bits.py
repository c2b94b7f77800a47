"""Averages of an optimiser in 8 bits: codes for numbers between -1 and 1, times a scale for each block of 256.

As in Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022), with torchao's tables and kernels.
"""

import torch
from torch import Tensor

from vlatrack.errors import MissingPackageError

BLOCK = 256
_SMALLEST = 4096  # smaller tensors save nothing to speak of, and norms are among them


def load_levels() -> None:
    """Compute the tables once, which cannot be done where tensors are fake.

    Raises:
        MissingPackageError: torchao is missing.
    """
    try:
        from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned
    except ImportError:
        raise MissingPackageError(
            "train.memory.optimizer_states: 8bit needs the package torchao: pip install 'vlatrack[scale]'"
        ) from None
    get_qmap_signed(), get_qmap_unsigned()


def has_blocks(tensor: Tensor) -> bool:
    """Whether a tensor is large enough, and a whole number of blocks."""
    return tensor.numel() >= _SMALLEST and tensor.numel() % BLOCK == 0


def levels(device: torch.device, *, signed: bool) -> Tensor:
    """The numbers [256] in ascending order that the codes stand for."""
    from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned

    return torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned(), dtype=torch.float32, device=device)


def dequantised(codes: Tensor, scale: Tensor, of_codes: Tensor) -> Tensor:
    """The values of codes [n] with the scales [n / 256] of their blocks."""
    from torchao.optim.quant_utils import dequant_with_qmap

    values: Tensor = dequant_with_qmap(codes, of_codes, scale)
    return values


def quantised(values: Tensor, of_codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n] and scales [n / 256] of float32 [n]."""
    from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor

    scaled, scale = scale_tensor(values, BLOCK)
    return quantize_8bit_with_qmap(scaled, of_codes), scale

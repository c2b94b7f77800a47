"""Frozen linear layers stored in 4 bits, by bitsandbytes: NF4 with double quantisation, as in QLoRA (Dettmers et al.
2023, arXiv 2305.14314).

64 numbers at a time are divided by the largest of them and rounded to one of 16 levels; 256 of these largest ones are
rounded to 8 bits in the same way: 4.13 bits a number. Products are computed in bf16.
"""

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlatrack.errors import MissingPackageError

_BLOCK, _BLOCK_OF_SCALES = 64, 256
_KERNELS = "kernels"


def import_bitsandbytes() -> Any:
    """The package, with nothing said or fetched: on some CPUs it asks the hub for a kernel when it is imported, and
    warns where that is not to be had. That kernel multiplies without gradients, in another layout, and is not used.

    Raises:
        MissingPackageError: it is not installed.
    """
    log = logging.getLogger("bitsandbytes")
    level, known = log.level, sys.modules.get(_KERNELS)
    log.setLevel(logging.ERROR)
    sys.modules[_KERNELS] = None  # type: ignore[assignment]  # importing it fails
    try:
        import bitsandbytes
        from bitsandbytes import functional
    except ImportError as error:
        raise MissingPackageError(
            f"backbone.adapter.base: 4bit needs bitsandbytes ({error}); install it: pip install 'vlatrack[scale]'"
        ) from error
    finally:
        log.setLevel(level)
        del sys.modules[_KERNELS]
        if known is not None:
            sys.modules[_KERNELS] = known
    if "dynamic" not in functional.name2qmap:  # also where others imported the package
        with torch.device("cpu"):  # kept for good: it must not be made on the meta device, by the first layer there
            functional.name2qmap["dynamic"] = functional.create_dynamic_map()
    return bitsandbytes


class FourBitLinear(nn.Linear):
    """A frozen linear layer [out, in] in NF4.

    bitsandbytes' own layer keeps its scales outside of parameters and buffers, and repacks its weight on some CPUs as
    soon as it is evaluated. Here all of it is buffers, so that it moves, is saved and is restored as any other layer,
    can be on the meta device, and is whole in every process of a sharded policy: FSDP2 could not cut it into rows.
    """

    codes: Tensor  # uint8 [out * in / 2, 1], two numbers in each
    scales: Tensor  # uint8, of each block
    levels: Tensor  # float32 [16]
    scales_of_scales: Tensor  # float32
    levels_of_scales: Tensor  # float32 [256]
    offset: Tensor  # float32 [], the mean of the scales

    def __init__(self, layer: nn.Linear) -> None:
        """The layer in 4 bits, rounded from its weight in bf16; on the meta device, without contents."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        for name, tensor in _quantised(layer.weight).items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """bf16 [out, in], computed anew each time."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.codes, self._state())
        return weight

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Take over a weight [out, in] of any dtype and device; it is rounded where this layer is."""
        for name, tensor in _quantised(weight.to(self.codes.device)).items():
            self.get_buffer(name).copy_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        product: Tensor = matmul_4bit(x.to(torch.bfloat16), self.codes, quant_state=self._state(), bias=self.bias)
        return product

    def plain(self) -> nn.Linear:
        """An ordinary layer with the same weights, in fp32."""
        weight = self.weight.float()
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer

    def _state(self) -> Any:
        from bitsandbytes.functional import QuantState

        of_scales = QuantState(
            self.scales_of_scales, code=self.levels_of_scales, blocksize=_BLOCK_OF_SCALES, dtype=torch.float32
        )
        return QuantState(
            self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=torch.bfloat16,
            offset=self.offset,
            state2=of_scales,
        )


def _quantised(weight: Tensor) -> dict[str, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    numbers = weight.detach().to(torch.bfloat16).contiguous()
    codes, state = quantize_4bit(numbers, blocksize=_BLOCK, quant_type="nf4", compress_statistics=True)
    assert state.state2.blocksize == _BLOCK_OF_SCALES, "as bitsandbytes multiplies them"
    return {
        "codes": codes,
        "scales": state.absmax,
        "levels": state.code.clone(),  # of one tensor for all layers, checkpoints would hold only the first layer's
        "scales_of_scales": state.state2.absmax,
        "levels_of_scales": state.state2.code.to(weight.device, copy=True),
        "offset": state.offset,
    }


def use_four_bits(blocks: nn.Module) -> None:
    """Put a ``FourBitLinear`` in the place of each frozen linear layer, one after another.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    import_bitsandbytes()
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not layer.weight.requires_grad:
                setattr(parent, name, FourBitLinear(layer))


def use_plain_layers(blocks: nn.Module) -> None:
    """The inverse of ``use_four_bits``, as far as there is one."""
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, FourBitLinear):
                setattr(parent, name, layer.plain())


def four_bit_layers(module: nn.Module) -> Iterator[FourBitLinear]:
    """All of them inside a module."""
    return (layer for layer in module.modules() if isinstance(layer, FourBitLinear))


def weights_of(module: nn.Module) -> list[Tensor]:
    """What a module's weights are stored in: its parameters, and the tensors of its layers in 4 bits."""
    packed = [tensor for layer in four_bit_layers(module) for tensor in layer.buffers(recurse=False)]
    return [*module.parameters(), *packed]


def count_weights(module: nn.Module) -> int:
    """How many numbers the weights of a module are, however they are stored."""
    packed = sum(layer.in_features * layer.out_features for layer in four_bit_layers(module))
    return packed + sum(parameter.numel() for parameter in module.parameters())

"""Low-rank adapters beside the frozen linear layers of a backbone, by peft: LoRA and DoRA.

A layer with an adapter is stored as what it was, under its old name and `base_layer`, and the adapter's matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from vlatrack.errors import MissingPackageError, SpecError
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.backbones.four_bits import import_bitsandbytes, use_four_bits, use_plain_layers
from vlatrack.models.backbones.pretrained import held_rows


@dataclass(frozen=True)
class Adapter:
    """The adapters of a policy; the fields mean what they mean in the experiment's YAML."""

    kind: Literal["lora", "dora"]
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    base: Literal["fp32", "bf16", "4bit"]


def add_adapter(backbone: Backbone, adapter: Adapter) -> None:
    """Freeze ``backbone``, whose weights are there already, and add an adapter to each layer that is a target.

    It computes what it did before until the adapters are trained, but for the rounding of ``adapter.base``. They have
    fp32 weights, whatever the base has.

    Raises:
        SpecError: a target is not the name of a linear layer in a block.
        MissingPackageError: peft or bitsandbytes is not installed.
    """
    _check_targets(backbone, adapter.targets)
    if find_spec("bitsandbytes"):
        import_bitsandbytes()  # else peft would
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackageError(
            f"backbone.adapter: needs peft ({error}); install it: pip install 'vlatrack[scale]'"
        ) from error
    backbone.requires_grad_(False)
    if adapter.base != "fp32":
        for parameter in backbone.parameters():  # not the buffers: positions need their digits
            parameter.data = parameter.data.bfloat16()
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.targets),
        use_dora=adapter.kind == "dora",
    )
    before = {id(parameter) for parameter in backbone.parameters()}
    with _layers_in_memory(backbone.blocks):
        before |= {id(parameter) for parameter in backbone.parameters()}
        inject_adapter_in_model(config, backbone.blocks)
    for parameter in backbone.parameters():
        is_new = id(parameter) not in before
        parameter.requires_grad_(is_new)
        if is_new:
            parameter.data = parameter.data.float()
    if adapter.base == "4bit":
        use_four_bits(backbone.blocks)
        measure_lengths(backbone)


@contextmanager
def _layers_in_memory(blocks: nn.Module) -> Iterator[None]:
    """Inside, linear layers on the meta device have weights that take no memory and mean nothing: peft puts adapters
    where these are, and they would lose the numbers that they begin with."""
    layers = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear) and layer.weight.is_meta]
    weights = [layer.weight for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(torch.ones((), dtype=weight.dtype).expand(weight.shape), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight


@torch.no_grad()
def measure_lengths(backbone: Backbone) -> None:
    """Give DoRA the lengths of the weight vectors as they are now, which it begins with; of a sharded policy, each
    process those that it holds. The adapters must not have been trained."""
    from peft.tuners.lora import LoraLayer

    for layer in backbone.blocks.modules():
        if isinstance(layer, LoraLayer) and (made := layer.lora_magnitude_vector):
            weight = layer.get_base_layer().weight
            for name, lengths in made.items():
                own, first = held_rows(lengths.weight)
                rows, start = held_rows(weight)
                if rows.is_meta:
                    continue  # to be measured when they are there
                measured = lengths.get_weight_norm(rows, torch.zeros((), device=rows.device), layer.scaling[name])
                own.copy_(measured[first - start : first - start + len(own)])


def merge_adapter(backbone: Backbone) -> None:
    """Add each adapter to the weight of its layer, in fp32, and put the plain layer in its place."""
    from peft.tuners.lora import LoraLayer

    use_plain_layers(backbone.blocks)
    for parameter in backbone.parameters():
        parameter.data = parameter.data.to(torch.float32)
    for parent in list(backbone.blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())


def _check_targets(backbone: Backbone, targets: tuple[str, ...]) -> None:
    layers = [name for name, module in backbone.blocks.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            there = dict.fromkeys(name.rpartition(".")[2] for name in layers)
            raise SpecError(
                f"backbone.adapter.targets: {target} is no linear layer of this backbone; there are {', '.join(there)}"
            )

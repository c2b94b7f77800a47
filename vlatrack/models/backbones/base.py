"""The interface of backbones, and of the factories that build them.

Legend: B rows, S positions, D width, K vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import DynamicCache, StaticCache

from vlatrack.errors import BackboneError, SpecError
from vlatrack.models.backbones.pretrained import PretrainedFolder, PretrainedWeights
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import TextTokenizer

Geometry = Mapping[str, Any]
"""JSON values from which the same module can be built: its sizes, and its token ids if they are not Chameleon's."""


class Backbone(nn.Module, ABC):
    """A decoder from token rows to hidden states, with the output layer that turns them into logits."""

    layout: TokenLayout = TokenLayout()
    """The token ids of images, actions, states and text in this backbone's vocabulary; by default Chameleon's."""

    @abstractmethod
    def forward(self, input_ids: Tensor, mask: Any) -> Tensor:
        """Hidden states [B, S, D] after the final norm.

        Args:
            input_ids: int64 [B, S].
            mask: bool [B, S, S], true where a query (second axis) may attend to a key (third axis); after
                `use_flex_attention` a BlockMask.
        """

    keeps_keys: bool = False
    """Whether `forward_further` is there."""

    def forward_further(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, kept: Any | None
    ) -> tuple[Tensor, Any]:
        """Hidden states [B, S, D] of positions that follow those of earlier calls, whose keys and values were kept.

        Args:
            input_ids: int64 [B, S].
            mask: bool [B, S, T + S], true where a query may attend to one of the T earlier or these S positions.
            positions: int64 [B, S], the place of each in its row, from 0.
            kept: what the last call returned beside the hidden states; at first None, or what `room_for` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no keys and values")

    def room_for(self, positions: int) -> Any | None:
        """Memory for the keys and values of so many positions of each row, which stays in its place while they are
        added; None: it grows with each call.

        `reset()` of it makes it empty, for rows that are as many.
        """
        return None

    @property
    @abstractmethod
    def output_layer(self) -> Tensor:
        """The weight [K, D] of the output layer; the embedding's weight if the two are tied."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The decoder layers in order, which are compiled, sharded and checkpointed one by one."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """What a checkpoint stores to rebuild this module without its pretrained folder or the hub."""

    def use_flex_attention(self) -> None:
        """From now on attend with FlexAttention, for which `forward` gets a BlockMask.

        Raises:
            BackboneError: it has none, as by default.
        """
        raise BackboneError(f"train.attention: {type(self).__name__} has no FlexAttention; use sdpa")


@dataclass(frozen=True)
class BackboneSource:
    """How to build the backbone of a policy, with the tokenizers and weights that belong to it."""

    build: Callable[[], Backbone]
    """Returns the module with random weights, drawn from torch's global generator."""
    text: TextTokenizer | None = None
    """None: text is encoded as bytes, with the byte ids of the backbone's layout."""
    images: PretrainedFolder | None = None
    """The Chameleon checkpoint whose image tokenizer is used; None: one is fitted to the data."""
    weights: PretrainedWeights | None = None
    """Pretrained weights to copy over the random ones."""


class BackboneFactory(ABC):
    """A kind of backbone, with the settings of an experiment."""

    @abstractmethod
    def open(self) -> BackboneSource:
        """The source of a new policy's backbone. Reads no weights yet.

        Raises:
            CheckpointError: the pretrained folder is missing, damaged, or of another kind of model.
            SpecError: no model can have these settings.
        """

    @abstractmethod
    def from_geometry(self, geometry: Geometry) -> Backbone:
        """A stored policy's backbone, from what ``Backbone.geometry`` returned; its weights are random."""


def decoder_mask(mask: Tensor | BlockMask, weight_dtype: torch.dtype) -> Tensor | BlockMask:
    """The mask as transformers' decoders take it: [B, 1, S, S], which a BlockMask has by itself.

    A dense one becomes 0 and -inf in the precision of the products. SDPA would do that in each layer, and keep each
    result for the backward pass.

    Args:
        weight_dtype: the precision of the products without autocast.
    """
    if not isinstance(mask, Tensor):
        return mask
    kind = mask.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)[:, None]


def decoder_further(
    decoder: Any, input_ids: Tensor, mask: Tensor, positions: Tensor, kept: DynamicCache | StaticCache | None
) -> tuple[Tensor, DynamicCache | StaticCache]:
    """``Backbone.forward_further`` of one of transformers' decoders."""
    if isinstance(kept, StaticCache):  # attention is to all of it, also to what is empty yet
        mask = nn.functional.pad(mask, (0, kept.get_max_length() - mask.shape[2]))
    done = decoder(
        input_ids=input_ids,
        attention_mask=decoder_mask(mask, decoder.embed_tokens.weight.dtype),
        position_ids=positions,
        past_key_values=DynamicCache() if kept is None else kept,
        use_cache=True,
    )
    return done.last_hidden_state, done.past_key_values


def check_head_width(width: int, heads: int) -> None:
    """Raise SpecError for sizes from a spec of which attention heads with rotary positions cannot be made."""
    if width % (2 * heads):
        raise SpecError(f"backbone.sizes: hidden_size {width} is not a multiple of 2 * num_attention_heads ({heads})")


def add_residual_dropout(blocks: Iterable[Any], probability: float) -> None:
    """Apply dropout to both residual branches of transformers' decoder layers, as the reference does.

    The hooks are on the branches, not on their last linear layers: an adapter that replaces such a layer would escape.
    """

    def drop(module: nn.Module, _: object, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: hidden states, then weights that nobody asks for
            return torch.dropout(output[0], probability, module.training), *output[1:]
        return torch.dropout(output, probability, module.training)

    for block in blocks:
        block.self_attn.register_forward_hook(drop)
        block.mlp.register_forward_hook(drop)

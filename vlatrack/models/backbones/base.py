"""What a policy asks of a backbone, and what a backbone asks of the outside when a new policy begins.

Legend: B rows, S positions, D width, K vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlatrack.models.backbones.pretrained import PretrainedFolder, PretrainedWeights
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import TextTokenizer

Geometry = Mapping[str, Any]
"""JSON values that make the same module again: sizes, and where they are not Chameleon's, the ids of the layout."""


class Backbone(nn.Module, ABC):
    """A decoder from token rows to hidden states, and the output layer that turns those into logits."""

    layout: TokenLayout = TokenLayout()
    """The ids of images, actions, states and text in this backbone's vocabulary; Chameleon's unless set."""

    @abstractmethod
    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [B, S, D] after the final norm.

        Args:
            input_ids: int64 [B, S].
            mask: bool [B, S, S], true where a query (second axis) may attend to a key (third axis).
        """

    @property
    @abstractmethod
    def output_layer(self) -> Tensor:
        """The matrix [K, D] that turns hidden states into logits; the embedding's own where the two are tied."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The repeated layers, in order: what is compiled, sharded and checkpointed one by one."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """What a checkpoint keeps to build this module again, without its pretrained folder or a hub."""

    def enable_gradient_checkpointing(self) -> None:
        """Compute each block's activations again in the backward pass: less memory, more time, the same numbers."""
        for block in self.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@dataclass(frozen=True)
class BackboneSource:
    """Where the backbone of a policy comes from, and what comes with it."""

    build: Callable[[], Backbone]
    """The module with random weights, drawn from torch's generator."""
    text: TextTokenizer | None = None
    """None: text is bytes, under the ids that the backbone's layout has for them."""
    images: PretrainedFolder | None = None
    """A Chameleon checkpoint whose image tokenizer is used; None: one is fitted to the data."""
    weights: PretrainedWeights | None = None
    """What is copied over the random weights."""


class BackboneFactory(ABC):
    """One kind of backbone with the settings of an experiment."""

    @abstractmethod
    def open(self) -> BackboneSource:
        """For a new policy. Reads no weights yet.

        Raises:
            CheckpointError: the pretrained folder is missing, damaged, or of another kind of model.
            SpecError: the settings do not make a model.
        """

    @abstractmethod
    def from_geometry(self, geometry: Geometry) -> Backbone:
        """For a policy whose weights are stored: what ``Backbone.geometry`` gave, with random weights."""


def add_residual_dropout(blocks: Iterable[Any], probability: float) -> None:
    """Drop out what each branch of transformers' decoder layers adds to the residual stream, as the reference does.

    The last linear map of a branch is all that stands between it and the sum, so a hook on that
    map does it without a decoder layer of our own.
    """

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return torch.dropout(output, probability, module.training)

    for block in blocks:
        block.self_attn.o_proj.register_forward_hook(drop)
        block.mlp.down_proj.register_forward_hook(drop)

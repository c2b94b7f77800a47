"""Transformers' Chameleon as a backbone.

Legend: B rows, S positions, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, StaticCache

from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.base import (
    Backbone,
    BackboneFactory,
    BackboneSource,
    Geometry,
    add_residual_dropout,
    check_head_width,
    decoder_further,
    decoder_mask,
)
from vlatrack.models.backbones.chameleon.pretrained import CHAMELEON_WEIGHTS
from vlatrack.models.backbones.pretrained import PretrainedFolder, PretrainedWeights, open_pretrained
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import PretrainedTextTokenizer

Preset = Literal["tiny", "small", "7b"]

_PRESETS: dict[Preset, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}

_GEOMETRY = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias swin_norm tie_word_embeddings"
).split()

# The policy gets images as tokens, so it builds the smallest possible image encoder and deletes it.
_NO_IMAGE_ENCODER = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 2}


def backbone_config(stored: Mapping[str, Any]) -> ChameleonConfig:
    """A config with the geometry of a checkpoint's config.json, which holds more than the decoder needs.

    Raises:
        CheckpointError: no Chameleon can have this geometry.
    """
    geometry = {name: stored[name] for name in _GEOMETRY if stored.get(name) is not None}
    geometry.setdefault("num_key_value_heads", geometry.get("num_attention_heads"))
    if "rope_parameters" not in geometry and stored.get("rope_theta") is not None:
        geometry["rope_parameters"] = {"rope_type": "default", "rope_theta": stored["rope_theta"]}
    try:
        return ChameleonConfig(**geometry, vq_config=_NO_IMAGE_ENCODER, vocabulary_map={"<image>": 8711})
    except StrictDataclassError as error:
        raise CheckpointError(f"not a Chameleon's geometry: {' '.join(str(error).split())}") from error


class ChameleonBackbone(Backbone):
    """The Chameleon decoder and its output layer, with the reference's dropout on the residual branches."""

    def __init__(self, config: ChameleonConfig, *, residual_dropout: float = 0.0) -> None:
        """
        Raises:
            CheckpointError: residual dropout with a Swin-norm Chameleon (34B), for which the reference defines none.
        """
        super().__init__()
        if config.swin_norm and residual_dropout:
            raise CheckpointError("backbone.residual_dropout: not defined for a swin_norm Chameleon (34B); set it to 0")
        self.chameleon = ChameleonForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        del self.chameleon.model.vqmodel
        if residual_dropout:
            add_residual_dropout(self.blocks, residual_dropout)

    @property
    def width(self) -> int:
        return int(self.chameleon.config.hidden_size)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.chameleon.model.layers
        return layers

    def geometry(self) -> Geometry:
        return {name: getattr(self.chameleon.config, name) for name in _GEOMETRY}

    def use_flex_attention(self) -> None:
        self.chameleon.model.config._attn_implementation = "flex_attention"

    def forward(self, input_ids: Tensor, mask: Tensor | BlockMask) -> Tensor:
        hidden: Tensor = self.chameleon.model(
            input_ids=input_ids,
            attention_mask=decoder_mask(mask, self.chameleon.model.embed_tokens.weight.dtype),
            use_cache=False,
        ).last_hidden_state
        return hidden

    keeps_keys = True

    def forward_further(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, kept: Any | None
    ) -> tuple[Tensor, Any]:
        return decoder_further(self.chameleon.model, input_ids, mask, positions, kept)

    def room_for(self, positions: int) -> StaticCache:
        return StaticCache(self.chameleon.model.config, max_cache_len=positions)

    @property
    def output_layer(self) -> Tensor:
        return self.chameleon.lm_head.weight


@dataclass(frozen=True)
class ChameleonFactory(BackboneFactory):
    """A Chameleon from a preset with optional changes, a checkpoint folder or a hub repository."""

    preset: Preset | None
    sizes: Mapping[str, int]  # by transformers' names; they override the preset
    checkpoint: str | None
    tokenizer: str | None  # checkpoint with the text and image tokenizers; None: the one above
    residual_dropout: float
    max_seq_len: int
    with_weights: bool = True  # false: for the sizes alone, the weights of the checkpoints need not be there

    def open(self) -> BackboneSource:
        images = None if self.tokenizer is None else open_pretrained(self.tokenizer, with_weights=self.with_weights)
        if self.checkpoint is None:
            return self._from_scratch(images)
        folder = open_pretrained(self.checkpoint, with_weights=self.with_weights)
        geometry = _pretrained_geometry(folder, self.max_seq_len)
        images = images or folder
        return BackboneSource(
            build=partial(self.from_geometry, geometry),
            text=PretrainedTextTokenizer.read(images.path),
            images=images,
            weights=PretrainedWeights(folder, CHAMELEON_WEIGHTS) if self.with_weights else None,
        )

    def from_geometry(self, geometry: Geometry) -> Backbone:
        return ChameleonBackbone(backbone_config(geometry), residual_dropout=self.residual_dropout)

    def _from_scratch(self, images: PretrainedFolder | None) -> BackboneSource:
        assert self.preset is not None, "the spec asks for a preset or a checkpoint"
        vocabulary = 65536 if self.preset == "7b" else TokenLayout().vocabulary_size
        text = None if images is None else PretrainedTextTokenizer.read(images.path)
        if text is not None:
            vocabulary = max(vocabulary, text.vocabulary_size)
        sizes = {**_PRESETS[self.preset], **self.sizes}
        check_head_width(sizes["hidden_size"], sizes["num_attention_heads"])
        geometry = {**sizes, "vocab_size": vocabulary, "max_position_embeddings": self.max_seq_len}
        return BackboneSource(build=partial(self.from_geometry, geometry), text=text, images=images)


def _pretrained_geometry(folder: PretrainedFolder, max_seq_len: int) -> dict[str, Any]:
    config, file = folder.config, folder.path / "config.json"
    if config.get("model_type", "chameleon") not in ("chameleon", "chameleon_xllmx"):
        raise CheckpointError(f"{file}: a {config['model_type']} model, not a Chameleon; use backbone.kind: causal_lm")
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in config]
    if missing:
        raise CheckpointError(f"{file}: lacks {', '.join(missing)}")
    if config.get("tie_word_embeddings"):
        raise CheckpointError(f"{file}: tie_word_embeddings is true, but a Chameleon has an output layer of its own")
    geometry = {**config, "max_position_embeddings": max(config.get("max_position_embeddings") or 0, max_seq_len)}
    backbone_config(geometry)  # fails now rather than after something slow
    return geometry

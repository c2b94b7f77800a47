"""Transformers' Chameleon as a backbone: token rows to hidden states.

Legend: B rows, S positions, D width.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from vlatrack.errors import CheckpointError
from vlatrack.tokens.layout import TokenLayout

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

# The policy gets images as tokens, so its own copy of the image encoder is the smallest that can be built.
_NO_IMAGE_ENCODER = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 2}


def preset_config(preset: Preset, *, max_seq_len: int, layout: TokenLayout) -> ChameleonConfig:
    """The geometry of a model from scratch: `tiny` for a laptop, `small` for one GPU, `7b` the real size."""
    sizes = _PRESETS[preset]
    vocabulary = 65536 if preset == "7b" else layout.scratch_vocabulary
    return backbone_config({**sizes, "vocab_size": vocabulary, "max_position_embeddings": max_seq_len})


def backbone_config(stored: Mapping[str, Any]) -> ChameleonConfig:
    """A config from stored geometry (a checkpoint's config.json holds more than the decoder needs)."""
    geometry = {name: stored[name] for name in _GEOMETRY if stored.get(name) is not None}
    geometry.setdefault("num_key_value_heads", geometry.get("num_attention_heads"))
    if "rope_parameters" not in geometry and stored.get("rope_theta") is not None:
        geometry["rope_parameters"] = {"rope_type": "default", "rope_theta": stored["rope_theta"]}
    return ChameleonConfig(**geometry, vq_config=_NO_IMAGE_ENCODER, vocabulary_map={"<image>": 8711})


class ChameleonBackbone(nn.Module):
    """The decoder and its output matrix, with the reference's dropout on the residual branches."""

    def __init__(self, config: ChameleonConfig, *, residual_dropout: float = 0.0) -> None:
        """
        Raises:
            CheckpointError: residual dropout is asked of a Swin-norm Chameleon (34B), which the reference lacks.
        """
        super().__init__()
        if config.swin_norm and residual_dropout:
            raise CheckpointError("backbone.residual_dropout: not defined for a swin_norm Chameleon (34B); set it to 0")
        self.chameleon = ChameleonForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        del self.chameleon.model.vqmodel
        if residual_dropout:
            self._add_residual_dropout(residual_dropout)

    @property
    def width(self) -> int:
        return int(self.chameleon.config.hidden_size)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [B, S, D] after the final norm.

        Args:
            input_ids: int64 [B, S].
            mask: bool [B, S, S], true where a query may attend to a key.
        """
        hidden: Tensor = self.chameleon.model(
            input_ids=input_ids, attention_mask=mask[:, None], use_cache=False
        ).last_hidden_state
        return hidden

    @property
    def output_layer(self) -> Tensor:
        """The matrix [vocabulary, D] that turns hidden states into logits."""
        return self.chameleon.lm_head.weight

    def _add_residual_dropout(self, probability: float) -> None:
        """Drop out what each branch adds to the residual stream.

        The last linear map of a branch is all that stands between it and the sum, so a hook on that
        map is the reference's dropout without a decoder layer of our own.
        """

        def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
            return torch.dropout(output, probability, module.training)

        for layer in self.chameleon.model.layers:
            layer.self_attn.o_proj.register_forward_hook(drop)
            layer.mlp.down_proj.register_forward_hook(drop)

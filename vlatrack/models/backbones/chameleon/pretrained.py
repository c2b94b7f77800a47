"""The weight map of Hugging Face Chameleon checkpoints and RynnVLA-002 / WorldVLA state dicts.

Both use the same names for the decoder. The reference differs in two places: it stores one q/k norm shared by all
heads, and it contains the ActionHead. The image encoder is skipped; the image tokenizer reads it.
"""

import re

from torch import Tensor

from vlatrack.models.backbones.pretrained import WeightMap
from vlatrack.tokens.layout import CHAMELEON_PREFIX

# The reference's names of the head's parameters, as patterns, and ours.
_HEAD_NAMES: tuple[tuple[str, str], ...] = (
    (r"action_token_embeddings\.weight", "queries"),
    (r"hidden_projection\.(\w+)", r"projection.\1"),
    (r"transformer_encoder\.(.+)", r"encoder.\1"),
    (r"output_projection\.model\.layer_norm1\.(\w+)", r"readout.norm_in.\1"),
    (r"output_projection\.model\.fc1\.(\w+)", r"readout.linear_in.\1"),
    (r"output_projection\.model\.mlp_resnet_blocks\.(\d+)\.ffn\.(.+)", r"readout.blocks.\1.\2"),
    (r"output_projection\.model\.layer_norm2\.(\w+)", r"readout.norm_out.\1"),
    (r"output_projection\.model\.fc2\.(\w+)", r"readout.linear_out.\1"),
)
_HEAD_PREFIX = "action_head."
_SHARED_NORM = re.compile(r"\.self_attn\.([qk])_norm\.(weight|bias)$")


def own_name(name: str) -> str | None:
    """Our name of a pretrained parameter; None for one that the policy does not have (the image encoder)."""
    if name.startswith(CHAMELEON_PREFIX):
        return None
    if not name.startswith(_HEAD_PREFIX):
        return f"backbone.chameleon.{name}"
    for pattern, ours in _HEAD_NAMES:
        if match := re.fullmatch(pattern, name.removeprefix(_HEAD_PREFIX)):
            return _HEAD_PREFIX + match.expand(ours)
    return None


def _reshape(name: str, value: Tensor, target: Tensor) -> Tensor:
    if _SHARED_NORM.search(name) and value.ndim == 2 and target.shape[0] % value.shape[0] == 0:
        return value.repeat_interleave(target.shape[0] // value.shape[0], dim=0)
    if name.endswith("action_token_embeddings.weight") and value.numel() == target.numel():
        return value.view(target.shape)
    return value


CHAMELEON_WEIGHTS = WeightMap(own_name, _reshape)

"""Chameleon's tokenizers as Meta published them, and RynnVLA-002 ships them: `vqgan.ckpt` with the weights of the
VQ-VAE, `vqgan.yaml` with its geometry, and `text_tokenizer.json` with the names of the image codes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.stored_tensors import read_tensors
from vlatrack.tokens.layout import CHAMELEON_PREFIX

WEIGHTS = "vqgan.ckpt"
_GEOMETRY, _VOCABULARY = "vqgan.yaml", "text_tokenizer.json"

_NAMES = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "attn_type": "attn_type",
    "in_channels": "in_channels",
    "resolution": "resolution",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "dropout": "dropout",
}
"""From the original names of the geometry to transformers'."""
_PARTS = ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder")
"""Parts of the model in the checkpoint; it may also hold the networks of its training, under `loss`."""


def is_original(folder: Path) -> bool:
    """Whether a folder holds the original files rather than a Hugging Face model."""
    return not (folder / "config.json").exists() and (folder / _GEOMETRY).exists()


def original_config(folder: Path) -> dict[str, Any]:
    """What a Hugging Face Chameleon's config.json says of its image tokenizer: `vq_config` and `vocabulary_map`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    file = folder / _GEOMETRY
    try:
        model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["params"]
        geometry = {new: model["ddconfig"][old] for old, new in _NAMES.items() if old in model["ddconfig"]}
        geometry |= {"embed_dim": int(model["embed_dim"]), "num_embeddings": int(model["n_embed"])}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: not the geometry of a VQ-VAE ({_reason(error)}); restore the file") from error
    file = folder / _VOCABULARY
    try:
        vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
        if not isinstance(vocabulary, Mapping):
            raise TypeError("the vocabulary is no mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: no vocabulary, which names the image codes ({_reason(error)}); restore the file"
        ) from error
    return {"vq_config": geometry, "vocabulary_map": dict(vocabulary)}


def original_tensors(file: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names that they have in a Hugging Face Chameleon, those of the decoder as well.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything but plain values and tensors.
    """
    for name, value in read_tensors(file):
        theirs = CHAMELEON_PREFIX + name
        if name.partition(".")[0] in _PARTS and theirs.startswith(prefix):
            yield theirs, value


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"

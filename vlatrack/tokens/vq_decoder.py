"""The decoder of Chameleon's VQ-VAE, which transformers leaves out: from codes back to pixels.

It has the names and the arithmetic of the original `vqgan.ckpt`; its blocks are those of transformers' encoder.

Shapes: N images, R x C codes each, K codes of the codebook, E numbers of a code, P pixels of a code's side.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from vlatrack.errors import CheckpointError
from vlatrack.tokens.chameleon_vq import IMPOSSIBLE, fill, known_vq_fields

_FILE, _GEOMETRY = "image_decoder.safetensors", "vq_config"
_CODEBOOK = "quantize.embedding.weight"


class VqDecoder(nn.Module):
    """Codebook and decoder of a VQ-VAE."""

    description = "the VQ-VAE's own decoder"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """
        Args:
            config: the geometry of the VQ-VAE, under transformers' names.
        """
        super().__init__()
        settings = ChameleonVQVAEConfig(**config)
        self._config = known_vq_fields(settings.to_dict())
        self.quantize = _Codebook(settings.num_embeddings, settings.embed_dim)
        self.post_quant_conv = nn.Conv2d(settings.embed_dim, settings.latent_channels, 1)
        self.decoder = _Upwards(settings)

    @classmethod
    def of(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        """The decoder of a geometry with its weights; an exception of torch or transformers if they do not fit."""
        with torch.device("meta"):
            module = cls(config)
        fill(module, {name: weights[name] for name in module.state_dict() if name in weights})
        return module

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes [N, R, C] to RGB [N, R * P, C * P, 3]; what is no code, below 0 or above K-1, is shown as code 0."""
        book = self.quantize.embedding.weight  # [K, E]
        known = np.where((codes >= 0) & (codes < len(book)), codes, 0)
        images = []
        for image in torch.from_numpy(known).to(book.device):
            features = book[image].permute(2, 0, 1)[None]  # [1, E, R, C]
            pixels = self.decoder(self.post_quant_conv(features))
            images.append(((pixels + 1) * 127.5).round().clamp(0, 255).byte())
        return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write the decoder into the folder of an image tokenizer, for `load`; raises CheckpointError."""
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        try:
            (folder / _FILE).write_bytes(save(weights, metadata={_GEOMETRY: json.dumps(self._config)}))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the image decoder cannot be written ({error})") from error

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read what `save` wrote; None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        file = folder / _FILE
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                config = json.loads((stored.metadata() or {})[_GEOMETRY])
                weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
            return cls.of(config, weights)
        except Exception as error:  # a damaged file may hold any geometry and any weights
            reason = " ".join(str(error).split())[-200:]
            raise CheckpointError(f"{file}: the image decoder cannot be read ({reason}); restore the file") from error


def stored_decoder(config: Mapping[str, Any], weights: Mapping[str, Tensor], place: Path) -> VqDecoder:
    """The decoder of a checkpoint; CheckpointError if its weights are those of another geometry."""
    try:
        return VqDecoder.of(config, weights)
    except IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[-200:]
        raise CheckpointError(f"{place}: the image decoder has another geometry ({reason})") from error


class _Codebook(nn.Module):
    def __init__(self, codes: int, dimensions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dimensions)


class _Upwards(nn.Module):
    """From features [n, latent channels, R, C] to pixels [n, 3, S, S]."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        side = config.resolution // 2 ** (len(widths) - 1)
        has_attention = config.attn_type == "vanilla"
        attended = config.attn_resolutions if has_attention and config.attn_resolutions else ()
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": ChameleonVQVAEEncoderResnetBlock(config, width, width),
                "attn_1": ChameleonVQVAEEncoderAttnBlock(width) if has_attention else nn.Identity(),
                "block_2": ChameleonVQVAEEncoderResnetBlock(config, width, width),
            }
        )
        levels = []
        for level in reversed(range(len(widths))):
            levels.append(_Level(config, width, widths[level], attends=side in attended, doubles=level > 0))
            width, side = widths[level], side * 2
        self.up = nn.ModuleList(reversed(levels))  # numbered as in the encoder, from the finest on
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.in_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.conv_in(features)
        for middle in self.mid.values():
            hidden = middle(hidden)
        for level in reversed(self.up):
            hidden = level(hidden)
        pixels: Tensor = self.conv_out(nn.functional.silu(self.norm_out(hidden)))
        return pixels


class _Level(nn.Module):
    """The blocks of one resolution, and the step to twice its size."""

    def __init__(self, config: ChameleonVQVAEConfig, before: int, after: int, *, attends: bool, doubles: bool) -> None:
        super().__init__()
        count = config.num_res_blocks + 1
        self.block = nn.ModuleList(
            ChameleonVQVAEEncoderResnetBlock(config, after if number else before, after) for number in range(count)
        )
        self.attn = nn.ModuleList(ChameleonVQVAEEncoderAttnBlock(after) for _ in range(count if attends else 0))
        if doubles:
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(after, after, 3, padding=1)})
        self._doubles = doubles

    def forward(self, hidden: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            hidden = block(hidden)
            if len(self.attn):
                hidden = self.attn[number](hidden)
        if not self._doubles:
            return hidden
        doubled: Tensor = self.upsample["conv"](interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return doubled

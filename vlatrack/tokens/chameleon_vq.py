"""Chameleon's VQ-VAE: built with random weights or from stored ones, and run so that an image's codes depend on nothing
but the image.

Shapes: n images of S x S pixels, R x C codes each, K codes of the codebook, E numbers of a code.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from vlatrack.errors import CheckpointError

IMPOSSIBLE = (StrictDataclassError, RuntimeError, ValueError, TypeError, ArithmeticError)
"""What transformers and torch raise for a geometry that no VQ-VAE can have, or weights of another one."""


def vq_codes(vq: ChameleonVQVAE, pixels: Tensor) -> Tensor:
    """Images [n, 3, S, S] in [-1, 1] to codes [n, R * C], by the arithmetic of transformers' `encode`.

    Each image is compared with the codebook by a matrix product of its own: how one of all images were cut into blocks
    would depend on their number.
    """
    features = vq.quant_conv(_encoded(vq.encoder, pixels)).permute(0, 2, 3, 1).flatten(1, 2)  # [n, R * C, E]
    codebook = vq.quantize.embedding.weight
    lengths = codebook.square().sum(dim=1)
    distances = (image.square().sum(dim=1, keepdim=True) + lengths - 2 * (image @ codebook.T) for image in features)
    return torch.stack([of_image.argmin(dim=1) for of_image in distances])


def _encoded(encoder: Any, pixels: Tensor) -> Tensor:
    """What the encoder's own `forward` returns, but for an activation that keeps images apart."""
    hidden = encoder.conv_in(pixels)
    for level in encoder.down:
        for number, block in enumerate(level.block):
            hidden = _residual(block, hidden)
            if len(level.attn):
                hidden = level.attn[number](hidden)
        if hasattr(level, "downsample"):  # all but the last
            hidden = level.downsample(hidden)
    hidden = encoder.mid.attn_1(_residual(encoder.mid.block_1, hidden))
    encoded: Tensor = encoder.conv_out(_activated(encoder.norm_out(_residual(encoder.mid.block_2, hidden))))
    return encoded


def _residual(block: Any, hidden: Tensor) -> Tensor:
    inner = block.conv1(_activated(block.norm1(hidden)))
    inner = block.conv2(_activated(block.norm2(inner)))
    if block.in_channels != block.out_channels:
        hidden = (block.conv_shortcut if block.use_conv_shortcut else block.nin_shortcut)(hidden)
    return hidden + inner


def _activated(hidden: Tensor) -> Tensor:
    """x * sigmoid(x), in place.

    On a CPU, torch cuts all numbers into as many parts as it has threads, and at the end of each computes a few without
    vector instructions, which round differently. So each image gets a call of its own.
    """
    for image in hidden if hidden.device.type == "cpu" else (hidden,):
        image.mul_(torch.sigmoid(image))
    return hidden


def random_vq(*, image_size: int, codebook_size: int, base_channels: int, seed: int) -> ChameleonVQVAE:
    """A small one whose random convolutions tell images apart."""
    config = ChameleonVQVAEConfig(
        resolution=image_size,
        base_channels=base_channels,
        channel_multiplier=[1, 1, 2, 2, 2],  # four halvings: one code covers 16 x 16 pixels
        num_res_blocks=1,
        latent_channels=64,
        embed_dim=64,
        num_embeddings=codebook_size,
        attn_type="none",  # attention with random weights would mix all positions
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vq = ChameleonVQVAE(config)
        for module in vq.modules():
            if isinstance(module, nn.Conv2d):
                # Orthogonal filters keep the variance of the image through ten random layers.
                nn.init.orthogonal_(module.weight, gain=2**0.5)
    return vq.eval().requires_grad_(False)


def stored_vq(config: Mapping[str, Any], weights: Mapping[str, Tensor], place: Path) -> ChameleonVQVAE:
    """The one of a geometry and its weights, in float32 whatever they are stored in.

    Raises:
        CheckpointError: no VQ-VAE has this geometry, or the weights are those of another.
    """
    try:
        with torch.device("meta"):  # a damaged geometry may ask for more than there is memory
            vq = ChameleonVQVAE(ChameleonVQVAEConfig(**config))
        fill(vq, weights)
    except IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[-200:]
        raise CheckpointError(f"{place}: the image tokenizer has another geometry ({reason})") from error
    return vq


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a module of the meta device its weights, copied to float32; RuntimeError if they are those of another."""
    module.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in weights.items()}, assign=True)
    module.eval().requires_grad_(False)


def known_vq_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Only the geometry: a stored config also has fields of the library version that wrote it."""
    names = (
        "embed_dim num_embeddings double_latent latent_channels resolution in_channels base_channels "
        "channel_multiplier num_res_blocks attn_resolutions dropout attn_type"
    ).split()
    return {name: config[name] for name in names if name in config}


def ids_by_code(vocabulary: Mapping[str, int], codes: int, place: Path) -> list[int]:
    """The id of each code in a Chameleon's vocabulary, which spells them in letters (`IMGIMGBCZ` is code 12).

    Raises:
        CheckpointError: the vocabulary lacks a code, or a name is no code's.
    """
    named = {name: value for name, value in vocabulary.items() if name.startswith("IMGIMG")}
    try:
        ids = ChameleonImageVocabularyMapping(named).img2bpe
        return [int(ids[code]) for code in range(codes)]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{place}: its vocabulary does not name all {codes} image codes ({type(error).__name__}: {error}); "
            "restore the file of the text tokenizer"
        ) from error


def split_decoder(weights: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of encoder and codebook, and those of the decoder, which most checkpoints lack."""
    found = dict(weights)
    decoder = {name: found.pop(name) for name in list(found) if name.startswith("decoder.")}
    return found, decoder

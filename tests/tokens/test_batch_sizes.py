"""The ids of an image do not depend on the other images, nor on their number."""

import numpy as np
import pytest
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from vlatrack.tokens.images import FittedEncoder, ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.pixels import pixels_of
from vlatrack.tokens.projections import ProjectionQuantizer
from vlatrack.tokens.squares import SquareQuantizer

BATCHES = (1, 2, 7, 32, 33)
CODES = 128


def near_ties(tokenizer: ImageTokenizer) -> ImageTokenizer:
    """Give the codebook pairs of codes whose distances differ by less than rounding does: any other order of additions
    in the encoder, or in a distance, chooses the other one of a pair somewhere."""
    vq = tokenizer._vq
    if isinstance(vq, ProjectionQuantizer):
        prototypes = doubled(vq.prototypes.transpose(0, 1)).transpose(0, 1)
        tokenizer._vq = ProjectionQuantizer.stored({**vq.state_dict(), "prototypes": prototypes})
        return tokenizer
    book = vq.centres if isinstance(vq, SquareQuantizer) else vq.quantize.embedding.weight
    book.data = doubled(book)
    return tokenizer


def doubled(book: torch.Tensor) -> torch.Tensor:
    """The first half of the codes twice, once with noise."""
    twin = book[: len(book) // 2]
    noise = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, twin.shape).astype(np.float32))
    return torch.cat([twin, twin * (1 + 1e-6 * noise)])


def chameleon(image_size: int) -> ImageTokenizer:
    """With attention, as in the original, which the fitted ones lack."""
    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(
        base_channels=32, channel_multiplier=[1, 1, 2, 2, 2], num_res_blocks=1, latent_channels=32, embed_dim=32,
        num_embeddings=CODES, resolution=image_size,
    )  # fmt: skip
    vq = ChameleonVQVAE(config)
    with torch.inference_mode():  # codes that occur
        pixels = pixels_of(scenes(40, image_size), image_size)
        features = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).flatten(0, 2)
    vq.quantize.embedding.weight.data = features[:CODES].clone()
    return ImageTokenizer(vq, image_size=image_size, code_ids=4 + np.arange(CODES))


def check(tokenizer: ImageTokenizer, frames: np.ndarray, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = tokenizer.encode(frames)
        assert len(np.unique(whole)) > 8
        for batch in BATCHES:
            parts = [tokenizer.encode(frames[start : start + batch]) for start in range(0, len(frames), batch)]
            assert (np.concatenate(parts) == whole).all(), f"batches of {batch}, {threads} threads"
        assert (tokenizer.encode(frames[::-1][:1]) == whole[-1:]).all(), "a view with negative strides"
        backwards = tokenizer.encode(frames[::-1])[::-1]
        assert (backwards == whole).all(), f"in the opposite order, {threads} threads"
    finally:
        torch.set_num_threads(before)


def scenes(count: int, side: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("encoder", ["squares", "projections", "convolutions"])
def test_codes_of_a_fitted_tokenizer_are_the_same_in_batches_of_any_size(encoder: FittedEncoder) -> None:
    frames = scenes(34, 48)  # which are resized
    tokenizer = ImageTokenizer.fit(
        frames, image_size=32, codebook_size=64, seed=0, layout=TokenLayout(), encoder=encoder
    )
    check(near_ties(tokenizer), frames, 3)


def test_codes_of_a_chameleon_are_the_same_in_batches_of_any_size() -> None:
    check(near_ties(chameleon(32)), scenes(34, 32), 3)


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [96, 256])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_codes_of_large_images_are_the_same_in_batches_of_any_size(image_size: int, threads: int) -> None:
    check(near_ties(chameleon(image_size)), scenes(9, image_size), threads)

"""What image tokens cost: from frames as a dataset has them to token ids, beside the bare encoder on tensors that are
ready for it.

Frames are synthetic, and Chameleon's weights are random numbers: neither changes how long it takes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from vlatrack.tokens.images import FittedEncoder, ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.pixels import images_at_once, pixels_of, thumbnails_of

_FITTED: tuple[tuple[FittedEncoder, int, int], ...] = (
    ("squares", 64, 256),
    ("squares", 128, 1024),
    ("projections", 64, 2048),
    ("convolutions", 64, 256),
)
_CODES = 8192  # of Chameleon


@dataclass(frozen=True)
class ImageTokenSpeed:
    """Seconds of rounds that were measured in turns, for the same images."""

    encoder: str
    image_size: int  # that is encoded
    tokens: int  # of all images together
    bare_s: tuple[float, ...]
    in_size_s: tuple[float, ...]  # from frames of that size
    resized_s: tuple[float, ...]  # from frames twice as large, or half as large for Chameleon

    def share(self, seconds: tuple[float, ...]) -> float:
        """Of the throughput of the bare encoder, the median of the rounds."""
        return float(np.median(np.divide(self.bare_s, seconds)))

    def tokens_per_s(self, seconds: tuple[float, ...]) -> float:
        return self.tokens / float(np.median(seconds))


def measure_image_tokens(*, images: int, rounds: int) -> Iterator[ImageTokenSpeed]:
    """The encoders of models from scratch, and Chameleon's at its true size, with one image and at most two rounds."""
    for encoder, image_size, codes in _FITTED:
        frames = _scenes(images, 2 * image_size)
        tokenizer = ImageTokenizer.fit(
            frames, image_size=image_size, codebook_size=codes, seed=0, layout=TokenLayout(), encoder=encoder
        )
        yield _measured(tokenizer, encoder, frames, rounds)
    yield _measured(_chameleon(), "chameleon", _scenes(1, 256), min(rounds, 2))


def _chameleon() -> ImageTokenizer:
    """The published geometry: 512 pixels, 8,192 codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vq = ChameleonVQVAE(ChameleonVQVAEConfig(resolution=512, num_embeddings=_CODES))
    return ImageTokenizer(vq, image_size=512, code_ids=TokenLayout().first_image_code + np.arange(_CODES))


def _measured(tokenizer: ImageTokenizer, encoder: str, frames: NDArray[np.uint8], rounds: int) -> ImageTokenSpeed:
    in_size = tokenizer.resized(frames)
    ready = thumbnails_of(in_size) if encoder == "projections" else pixels_of(in_size, tokenizer.image_size)
    batches = torch.split(ready, images_at_once(tokenizer.image_size, ready.device))

    @torch.inference_mode()
    def bare() -> None:
        for images in batches:
            tokenizer.codes_of(images)

    ways: tuple[Callable[[], object], ...] = (
        bare,
        lambda: tokenizer.encode(in_size),
        lambda: tokenizer.encode(frames),
    )
    if len(frames) > 1:
        for way in ways:
            way()  # memory and caches, which a long image has no need of
    seconds = [tuple(_seconds(way) for way in ways) for _ in range(rounds)]
    bare_s, in_size_s, resized_s = zip(*seconds, strict=True)
    tokens = len(frames) * tokenizer.codes_per_side**2
    return ImageTokenSpeed(encoder, tokenizer.image_size, tokens, bare_s, in_size_s, resized_s)


def _scenes(count: int, side: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def _seconds(way: Callable[[], object]) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin

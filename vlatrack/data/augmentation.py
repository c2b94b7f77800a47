"""Frames as another crop and another light would have shown them: pure functions of pixels and a random generator.

Legend: N frames, H x W pixels.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

_VERSION = 1  # of what is drawn, and what becomes of a frame
_FRAMES_AT_ONCE = 64  # of which the pixels are in memory as float32
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """How far crops and colours may stray. Zeros, and a crop of 1, change nothing.

    Args:
        crop: smallest share of height and width that a crop keeps, 0 to 1. The tokenizer resizes what is left.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue: the angle is drawn from -x to x, in turns around the colour circle.
    """

    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        assert 0 < self.crop <= 1
        assert all(0 <= strength <= 1 for strength in (self.brightness, self.contrast, self.saturation))
        assert 0 <= self.hue <= 0.5

    @property
    def is_off(self) -> bool:
        return self == Augmentation()

    def apply(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Frames uint8 [N, H, W, 3] with one draw for all of them: [N, H', W', 3], H' and W' as the crop has them.

        What is drawn depends on the generator alone, not on the frames. Whatever is off is drawn as well, so that it
        does not change the rest. Frames are never changed in place.
        """
        share = 1 - (1 - self.crop) * rng.random()
        place = rng.random(2)
        brightness, contrast, saturation = (
            1 + strength * rng.uniform(-1, 1) for strength in (self.brightness, self.contrast, self.saturation)
        )
        colours = _colour_change(brightness, saturation, 2 * np.pi * self.hue * rng.uniform(-1, 1))
        cropped = _crop(frames, share, place)
        if self.brightness == self.contrast == self.saturation == self.hue == 0:
            return cropped.copy()
        changed = np.empty_like(cropped)
        for start in range(0, len(cropped), _FRAMES_AT_ONCE):
            part = slice(start, start + _FRAMES_AT_ONCE)
            changed[part] = _recoloured(cropped[part], colours, contrast)
        return changed


@dataclass(frozen=True)
class Variant:
    """One of the variants in which a dataset's frames are tokenised beside the original."""

    augmentation: Augmentation
    seed: int
    number: int  # from 1

    def of(self, frames: Frames, episode: int, camera: str) -> Frames:
        """Frames of an episode, changed by the draw that all of its frames of this camera share."""
        return self.augmentation.apply(frames, augmentation_generator(self.seed, self.number, episode, camera))

    def fingerprint(self) -> str:
        """Tells the changes of this variant from those of others."""
        return repr((_VERSION, self))


def augmentation_generator(seed: int, variant: int, episode: int, camera: str) -> np.random.Generator:
    """The generator of all frames of one variant of an episode of one camera, on every machine the same.

    It is made of a digest, so that neighbouring seeds, variants and episodes have nothing in common.
    """
    digest = hashlib.sha256(repr((seed, variant, episode, camera)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _crop(frames: Frames, share: float, place: NDArray[np.float64]) -> Frames:
    """The part of the frames with this share of their height and width, at a place from 0 to 1 in each direction."""
    height, width = (max(1, round(side * share)) for side in frames.shape[1:3])
    top, left = (
        (before - after) * at for before, after, at in zip(frames.shape[1:3], (height, width), place, strict=True)
    )
    return frames[:, round(top) : round(top) + height, round(left) : round(left) + width]


def _colour_change(brightness: float, saturation: float, angle: float) -> NDArray[np.float32]:
    """Brightness, saturation and hue as one matrix [3, 3] of RGB, in which all three are linear."""
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    turned = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = brightness * np.linalg.inv(_TO_YIQ.astype(np.float64)) @ turned @ _TO_YIQ
    return matrix.astype(np.float32)


def _recoloured(frames: Frames, colours: NDArray[np.float32], contrast: float) -> Frames:
    """Other colours, and another contrast around the mean grey of each frame."""
    pixels = frames.astype(np.float32) @ colours.T
    grey = (pixels @ _GREY).mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None, None, None]
    return np.clip(np.rint(grey + contrast * (pixels - grey)), 0, 255).astype(np.uint8)

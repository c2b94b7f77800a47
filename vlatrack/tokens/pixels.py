"""Frames as the tensors that image encoders take, and how many at once.

Shapes: N images, H x W pixels as they come, S x S as they are encoded.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

THUMBNAIL_SIDE = 16
_FIT_CHUNK = 32  # images in one forward pass while a codebook is fitted; another number would be another codebook
_PIXELS_AT_ONCE = 8 * 256**2  # on an accelerator; fewer would leave it idle


def pixels_of(frames: NDArray[np.uint8] | Tensor, image_size: int) -> Tensor:
    """uint8 [N, height, width, 3] to float [N, 3, image_size, image_size] in [-1, 1]."""
    return in_size(frames, image_size).div_(127.5).sub_(1)


def in_size(frames: NDArray[np.uint8] | Tensor, image_size: int) -> Tensor:
    """uint8 [N, height, width, 3] to float [N, 3, image_size, image_size] from 0 to 255.

    Channel by channel in memory, where resizing is faster, to the same numbers.
    """
    pixels = as_tensor(frames).permute(0, 3, 1, 2).contiguous().float()
    if pixels.shape[-2:] != (image_size, image_size):
        pixels = interpolate(pixels, size=(image_size, image_size), mode="bilinear", antialias=True)
    return pixels


def as_tensor(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """Frames as a tensor, which shares their memory if that is possible; a tensor stays on its device."""
    if isinstance(frames, Tensor):
        return frames
    # NumPy calls a single image of a reversed array contiguous, but torch takes no negative strides.
    return torch.from_numpy(frames.copy() if min(frames.strides) < 0 else frames)


def thumbnails_of(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [N, height, width, 3] to the mean colours of 16 x 16 blocks, float [N, 16 * 16 * 3] from 0 to 255.

    Sums of bytes are exact, in whatever order; images whose sides are no multiples of 16 are resized first.
    """
    side, (height, width) = THUMBNAIL_SIDE, frames.shape[1:3]
    images = as_tensor(frames)
    if height % side or width % side:
        images = in_size(images, 4 * side).permute(0, 2, 3, 1)
    height, width = images.shape[1] // side, images.shape[2] // side  # of a block
    rows = images.reshape(len(images), side, height, -1).float().sum(dim=2)
    return rows.view(len(images), side * side, width, 3).sum(dim=2).div_(height * width).flatten(1)


def images_at_once(image_size: int, device: torch.device) -> int:
    """Images in one forward pass: as many as are fast, and not so many that a single one pays for them.

    On a CPU, more fall out of its cache; and one small image alone is slow, since torch does not give it to oneDNN.
    """
    if device.type == "cpu":
        return 4 if image_size <= 64 else 2 if image_size < 256 else 1
    return max(1, min(128, _PIXELS_AT_ONCE // image_size**2))


def memory_format(device: torch.device) -> torch.memory_format:
    """Where convolutions are fast; on a CPU it is the one in which torch normalises each image by itself."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def fit_chunks(frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Frames [N, H, W, 3] in nearly equal parts, for the fit of a codebook."""
    return [chunk for chunk in np.array_split(frames, max(1, -(-len(frames) // _FIT_CHUNK))) if len(chunk)]

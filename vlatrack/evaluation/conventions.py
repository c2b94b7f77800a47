"""What recipes of evaluation do between policy and simulator: to the images before, and to the gripper after.

The steps and their order are those of the programs that published the recipes, whose policies were trained on images
made the same way.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]
"""RGB, [height, width, 3]."""
Resizing = Literal["pad", "lanczos3"]
Gripper = Literal["raw", "sign", "openvla"]

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ImageSteps:
    """What is done to an image, in this order."""

    jpeg: bool = False  # compressed as JPEG, quality 95 with halved colours, and back
    size: int | None = None  # height and width that it is resized to
    method: Resizing = "pad"  # of resizing
    crop_area: float = 1.0  # share of the area around the centre that is kept, and enlarged to the size before

    def __call__(self, image: Frame) -> Frame:
        """The image that the policy sees."""
        if self.jpeg:
            image = jpeg_round_trip(image)
        if self.size is not None:
            image = RESIZING[self.method](image, self.size)
        return image if self.crop_area == 1 else centre_crop(image, self.crop_area)


AS_RENDERED = ImageSteps()


def jpeg_round_trip(image: Frame) -> Frame:
    """The image after compression as JPEG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(content))


def pad_resize(image: Frame, size: int) -> Frame:
    """[size, size, 3], the shape of what is seen kept, with black above and below, or left and right of it."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shrinkage = max(width / size, height / size)
    resized = int(width / shrinkage), int(height / shrinkage)
    canvas = Image.new("RGB", (size, size))
    place = (size - resized[0]) // 2, (size - resized[1]) // 2
    canvas.paste(Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR), place)
    return np.asarray(canvas)


def lanczos_resize(image: Frame, size: int) -> Frame:
    """[size, size, 3], by a Lanczos filter of three lobes that is widened when it shrinks, rounded once at the end."""
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.LANCZOS)) for channel in channels]
    return np.clip(np.rint(np.stack(resized, axis=-1)), 0, 255).astype(np.uint8)


RESIZING: Mapping[Resizing, Callable[[Frame, int], Frame]] = {"pad": pad_resize, "lanczos3": lanczos_resize}


def centre_crop(image: Frame, area: float) -> Frame:
    """The share ``area`` of the image around its centre, enlarged to the image's size by bilinear interpolation.

    The corners of the crop are pixels of the result, as with TensorFlow's crop_and_resize.
    """
    enlarged = image.astype(np.float64)
    for axis, length in enumerate(image.shape[:2]):
        half = math.sqrt(area) * (length - 1) / 2
        places = np.linspace((length - 1) / 2 - half, (length - 1) / 2 + half, length)
        below = np.clip(np.floor(places).astype(int), 0, max(0, length - 2))
        above = np.minimum(below + 1, length - 1)
        share = (places - below).reshape(-1, *[1] * (2 - axis))
        enlarged = enlarged.take(below, axis) * (1 - share) + enlarged.take(above, axis) * share
    # A value of 255 is 1 there, and becomes 255 again by flooring 255.5 times it.
    return np.floor(enlarged / 255 * 255.5).clip(0, 255).astype(np.uint8)


def gripper_command(actions: NDArray[np.floating], convention: Gripper) -> NDArray[np.floating]:
    """Actions [..., A] of a policy as a simulator takes them, where the last number is the gripper: -1 opens, 1 closes.

    Args:
        convention: raw: as the policy says. sign: 1 from 0 on, else -1. openvla: the policy says 0 for closing and 1
            for opening; from 0.5 on it is -1, else 1.
    """
    if convention == "raw":
        return actions
    said = actions[..., -1]
    command = np.where(said >= 0, 1.0, -1.0) if convention == "sign" else np.where(said >= 0.5, -1.0, 1.0)
    converted = actions.copy()
    converted[..., -1] = np.where(np.isnan(said), said, command)  # what is no number stays none
    return converted

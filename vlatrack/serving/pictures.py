"""Images that come as PNG or JPEG."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlatrack.errors import ProtocolError

MOST_PIXELS = 3840 * 2160
_FORMATS = {"png": "PNG", "jpeg": "JPEG"}


def decode_picture(entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The image uint8 [height, width, channels] of a map {format, data, shape}.

    Raises:
        ProtocolError: another format, damaged, of another shape than it says, or more than ``MOST_PIXELS``.
    """
    kind, data, shape = entry.get("format", "png"), entry.get("data"), entry.get("shape")
    if not isinstance(kind, str) or kind not in _FORMATS or not isinstance(data, bytes):
        raise ProtocolError(f"image: of format {str(kind)[:20]!r}; expected the bytes of a png or jpeg, or raw")
    try:
        with Image.open(io.BytesIO(data), formats=[_FORMATS[kind]]) as picture:
            # The header tells the size; only then are the pixels decoded, which a small file can have very many of.
            if picture.width * picture.height > MOST_PIXELS:
                raise ProtocolError(f"image: {picture.width} x {picture.height} is more than {MOST_PIXELS:,} pixels")
            pixels = np.array(picture)
    except ProtocolError:
        raise
    except Exception as error:  # whatever a decoder says about bytes that are no picture
        raise ProtocolError(f"image: the {kind} is damaged ({type(error).__name__})") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or (shape is not None and list(pixels.shape) != shape):
        raise ProtocolError(f"image: is {pixels.dtype} {list(pixels.shape)}, but says {shape}"[:160])
    return pixels

"""Images that are embedded in a table."""

import io

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.formats.lerobot.rows import first_line
from vlatrack.errors import DataError

_MOST_PIXELS = 8192 * 4320


def embedded_image(place: str, cell: pa.Scalar) -> NDArray[np.uint8]:
    """The pixels [height, width, 3] of a cell with the bytes of a PNG or JPEG file.

    Raises:
        DataError: it holds none, or a damaged one.
    """
    content = cell.as_py()
    if not (isinstance(content, dict) and isinstance(content.get("bytes"), bytes) and content["bytes"]):
        raise DataError(f"{place}: the image is not embedded in the table; write the dataset with embedded images")
    try:
        with Image.open(io.BytesIO(content["bytes"]), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(f"{place}: damaged image ({image.width} x {image.height} pixels); restore the file")
            return np.asarray(image.convert("RGB"))
    except (
        OSError,
        ValueError,
        SyntaxError,
        OverflowError,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(f"{place}: damaged image ({first_line(error)}); restore the file") from None

"""From image codes back to pixels, without a trained decoder: each code shows the mean of what it stood for.

Shapes: N images, R x C codes each, K codes of the codebook, P pixels of a code's side.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlatrack.errors import CheckpointError
from vlatrack.tokens.layout import PIXELS_PER_CODE as P

_FILE, _NAME = "image_patches.safetensors", "patches"


class CodePatches:
    """A square of pixels for each code."""

    description = "codebook lookup, not trained: each code shows the mean of the training pixels that it stood for"

    def __init__(self, patches: NDArray[np.uint8]) -> None:
        """
        Args:
            patches: [K, P, P, 3].
        """
        self._patches = patches

    @classmethod
    def fit(cls, codes: NDArray[np.int64], frames: NDArray[np.uint8], *, codebook_size: int) -> Self:
        """The mean pixels under each code; of a code that does not occur the mean of all pixels.

        Args:
            codes: 0..K-1 [N, R, C].
            frames: RGB [N, R * P, C * P, 3], what was encoded.
        """
        count, rows, columns = codes.shape
        squares = frames.reshape(count, rows, P, columns, P, 3).swapaxes(2, 3).reshape(-1, P * P * 3)
        flat = codes.ravel()
        order = np.argsort(flat, kind="stable")
        found, starts = np.unique(flat[order], return_index=True)
        sums = [squares[part].sum(axis=0, dtype=np.float64) / len(part) for part in np.split(order, starts[1:])]
        overall = squares.reshape(-1, 3).mean(axis=0)
        patches = np.broadcast_to(overall, (codebook_size, P, P, 3)).copy()
        patches[found] = np.stack(sums).reshape(-1, P, P, 3)
        return cls(patches.round().astype(np.uint8))

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes [N, R, C] to RGB [N, R * P, C * P, 3]; what is no code, below 0 or above K-1, is grey."""
        known = (codes >= 0) & (codes < len(self._patches))
        squares = self._patches[np.where(known, codes, 0)]
        squares[~known] = 128
        count, rows, columns = codes.shape
        return squares.swapaxes(2, 3).reshape(count, rows * P, columns * P, 3)

    def save(self, folder: Path) -> None:
        """Write the patches into the folder of an image tokenizer, for `load`; raises CheckpointError."""
        try:
            (folder / _FILE).write_bytes(save({_NAME: torch.from_numpy(self._patches)}))  # as the umask has it
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the pixels of image codes cannot be written ({error})") from error

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
            return cls(load_file(file)[_NAME].numpy())
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{file}: the pixels of image codes cannot be read ({error})") from error

"""An image encoder for policies from scratch: each square of 16 x 16 pixels becomes the most similar of K squares.

Shapes: N images of S x S pixels, R = C = S / 16 squares a side, D numbers that describe a square.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlatrack.tokens.layout import PIXELS_PER_CODE as P

_DIMENSIONS = 32
"""Principal components of a square. Of its 768 numbers they keep what an object's place changes, at a fiftieth of the
cost; places are read from the codes of 16 components as well as from those of 32."""
_SQUARES = 60_000  # for the fit; more do not change the centres noticeably


class SquareQuantizer(nn.Module):
    """A codebook of squares, compared by their principal components."""

    mean: Tensor
    components: Tensor
    centres: Tensor

    def __init__(self, *, codes: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * P * P))
        self.register_buffer("components", torch.zeros(3 * P * P, dimensions))
        self.register_buffer("centres", torch.zeros(codes, dimensions))

    @property
    def device(self) -> torch.device:
        return self.centres.device

    @classmethod
    def fit(cls, squares: NDArray[np.float32], *, codes: int, seed: int) -> Self:
        """Fit the components, and by k-means the codebook, to squares [M, 3 * P * P] of the training images."""
        generator = np.random.default_rng(seed)
        if len(squares) > _SQUARES:
            squares = squares[generator.choice(len(squares), _SQUARES, replace=False)]
        mean = squares.mean(axis=0, dtype=np.float64)
        _, directions = np.linalg.eigh(np.cov(squares, rowvar=False, dtype=np.float64))
        components = directions[:, ::-1][:, :_DIMENSIONS]
        points = ((squares - mean) @ components).astype(np.float32)
        fitted = cls(codes=codes, dimensions=_DIMENSIONS)
        fitted.mean.copy_(torch.from_numpy(mean))
        fitted.components.copy_(torch.from_numpy(components.copy()))
        fitted.centres.copy_(torch.from_numpy(kmeans_centres(points, codes, seed)))
        return fitted

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [N, 3, S, S] in [-1, 1] to codes [N, R * C].

        The matrix products of a batch are those of its images, one by one: how one of all squares were cut into blocks
        would depend on their number.
        """
        count = len(pixels)
        squares = (squares_of(pixels) - self.mean).view(count, -1, len(self.mean))
        points = squares.bmm(self.components.expand(count, -1, -1))
        nearness = points.bmm(self.centres.T.expand(count, -1, -1)) - self.centres.square().sum(dim=1) / 2
        return nearness.argmax(dim=2)


def squares_of(pixels: Tensor) -> Tensor:
    """Images [N, 3, S, S] as squares [N * R * C, 3 * P * P], row by row."""
    parts = pixels.unfold(2, P, P).unfold(3, P, P)  # [N, 3, R, C, P, P]
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)


def kmeans_centres(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """``count`` centres of ``points`` [M, D]; repeated where the data has fewer distinct points."""
    from sklearn.cluster import MiniBatchKMeans

    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return np.resize(distinct, (count, points.shape[1]))
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, max_iter=20, batch_size=4096).fit(points)
    return means.cluster_centers_.astype(np.float32)

"""An image encoder for policies from scratch: each square of 16 x 16 pixels becomes the most similar of K squares.

Shapes: N images of S x S pixels, R = C = S / 16 squares a side, D numbers that describe a square.
"""

from collections.abc import Mapping
from typing import Any, Self

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

    def __init__(self, *, mean: Tensor, components: Tensor, centres: Tensor) -> None:
        """
        Args:
            mean: of squares [3 * P * P], channel by channel, in [-1, 1].
            components: [3 * P * P, D].
            centres: the codebook [K, D].

        Raises:
            ValueError: the shapes do not fit together.
        """
        super().__init__()
        numbers = 3 * P * P
        if mean.shape != (numbers,) or components.shape != (numbers, centres.shape[1]) or not len(centres):
            raise ValueError("its components and centres do not fit together")
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.register_buffer("centres", centres)

    @property
    def device(self) -> torch.device:
        return self.centres.device

    @classmethod
    def fit(cls, squares: NDArray[np.float32], *, codes: int, seed: int) -> Self:
        """Fit the components, and by k-means the codebook, to squares [M, 3 * P * P] of the training images."""
        generator = np.random.default_rng(seed)
        if len(squares) > _SQUARES:
            squares = squares[generator.choice(len(squares), _SQUARES, replace=False)]
        mean, components = principal_components(squares, _DIMENSIONS)
        points = ((squares - mean) @ components).astype(np.float32)
        return cls(
            mean=torch.from_numpy(mean.astype(np.float32)),
            components=torch.from_numpy(components.astype(np.float32)),
            centres=torch.from_numpy(kmeans_centres(points, codes, seed)),
        )

    @classmethod
    def stored(cls, weights: Mapping[str, Tensor]) -> Self:
        """From its `state_dict`; KeyError or ValueError if it is that of something else."""
        return cls(**{name: weights[name].to(torch.float32) for name in ("mean", "components", "centres")})

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [N, 3, S, S], float in [-1, 1] or uint8, to codes [N, R * C].

        The matrix products of a batch are those of its images, one by one: how one of all squares were cut into blocks
        would depend on their number.
        """
        count = len(pixels)
        squares = squares_of(pixels).view(count, -1, len(self.mean)).sub_(self.mean)
        points = squares.bmm(self.components.expand(count, -1, -1))
        nearness = points.bmm(self.centres.T.expand(count, -1, -1)) - self.centres.square().sum(dim=1) / 2
        return nearness.argmax(dim=2)


def squares_of(pixels: Tensor) -> Tensor:
    """Images [N, 3, S, S], float in [-1, 1] or uint8, as float squares [N * R * C, 3 * P * P], row by row; a copy.

    Bytes become floats while they are put in order, so that there is one way through memory less.
    """
    parts = pixels.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 1, 4, 5)  # [N, R, C, 3, P, P]
    squares = torch.empty(parts.shape, device=pixels.device).copy_(parts)
    if pixels.dtype == torch.uint8:
        squares.div_(127.5).sub_(1)
    return squares.view(-1, 3 * P * P)


def principal_components(
    points: NDArray[np.float32], count: int
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """The mean [D] of points [M, D], and the ``count`` directions of their largest variance [D, count]."""
    mean = points.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(np.cov(points, rowvar=False, dtype=np.float64))
    return mean, directions[:, ::-1][:, :count].copy()


def kmeans_centres(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """``count`` centres of ``points`` [M, D]; repeated where the data has fewer distinct points."""
    from sklearn.cluster import MiniBatchKMeans

    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return np.resize(distinct, (count, points.shape[1]))
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, max_iter=20, batch_size=4096).fit(points)
    return means.cluster_centers_.astype(np.float32)

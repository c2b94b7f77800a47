"""An image encoder for policies from scratch, in which each code is about the whole image: which of K training images
it resembles most, in a random projection that each code has of its own.

A square that something moves through is another one with every pixel of the way, and each of a few hundred codes for it
is seen too seldom to learn a place from. Here, all codes cut the space in which training images differ into K regions,
each another way, and how many codes two images share falls off smoothly with their distance: tile coding, with training
images as centres of the tiles. So places can be read from a sum of one vector for each code.

Shapes: N images, T codes an image, K codes of each place, D numbers of a thumbnail, Q of its principal components, E of
a projection.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlatrack.tokens.pixels import THUMBNAIL_SIDE
from vlatrack.tokens.squares import principal_components

THUMBNAIL_NUMBERS = 3 * THUMBNAIL_SIDE**2
_COMPONENTS, _PROJECTED = 32, 16


class ProjectionQuantizer(nn.Module):
    """A codebook of training images for each place, in the projections of these places."""

    mean: Tensor
    components: Tensor
    projections: Tensor
    prototypes: Tensor
    directions: Tensor
    lengths: Tensor

    def __init__(self, *, mean: Tensor, components: Tensor, projections: Tensor, prototypes: Tensor) -> None:
        """
        Args:
            mean: of thumbnails [D].
            components: [D, Q].
            projections: of the components, one for each place [T, Q, E].
            prototypes: projected images [T, K, E].

        Raises:
            ValueError: the shapes do not fit together.
        """
        super().__init__()
        places, count, projected = prototypes.shape
        if projections.shape != (places, components.shape[1], projected) or not count:
            raise ValueError("its projections and prototypes do not fit together")
        if mean.shape != (THUMBNAIL_NUMBERS,) or components.shape[0] != THUMBNAIL_NUMBERS:
            raise ValueError(f"its components are not those of {THUMBNAIL_NUMBERS} numbers")
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.register_buffer("projections", projections)
        self.register_buffer("prototypes", prototypes)
        # The nearest prototype is that with the largest product less half its square; all T * K products are one.
        directions = projections @ prototypes.transpose(1, 2)  # [T, Q, K]
        self.register_buffer("directions", directions.transpose(0, 1).flatten(1), persistent=False)
        self.register_buffer("lengths", prototypes.square().sum(dim=2) / 2, persistent=False)  # [T, K]

    @property
    def device(self) -> torch.device:
        return self.prototypes.device

    @classmethod
    def fit(cls, thumbnails: NDArray[np.float32], *, places: int, codes: int, seed: int) -> Self:
        """Fit to thumbnails [N, D] of the training images: K = `codes` of them, drawn at random, for each place."""
        generator = np.random.default_rng(seed)
        mean, components = principal_components(thumbnails, _COMPONENTS)
        points = ((thumbnails - mean) @ components).astype(np.float32)
        projections = generator.standard_normal((places, components.shape[1], _PROJECTED), np.float32)
        drawn = [points[np.resize(generator.permutation(len(points)), codes)] for _ in range(places)]
        tensors = {
            "mean": mean,
            "components": components,
            "projections": projections,
            "prototypes": np.stack(drawn) @ projections,
        }
        return cls(**{name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()})

    @classmethod
    def stored(cls, weights: Mapping[str, Tensor]) -> Self:
        """From its `state_dict`; KeyError or ValueError if it is that of something else."""
        names = ("mean", "components", "projections", "prototypes")
        return cls(**{name: weights[name].to(torch.float32) for name in names})

    def forward(self, thumbnails: Tensor) -> Tensor:
        """Thumbnails [N, D] to codes [N, T], those of place t from t * K on.

        The matrix products of a batch are those of its images, one by one: nothing depends on how many there are.
        """
        count, (places, codes) = len(thumbnails), self.lengths.shape
        points = (thumbnails - self.mean)[:, None].bmm(self.components.expand(count, -1, -1))  # [N, 1, Q]
        products = points.bmm(self.directions.expand(count, -1, -1)).view(count, places, codes)
        nearest = (products - self.lengths).argmax(dim=2)
        return nearest + torch.arange(places, device=self.device) * codes

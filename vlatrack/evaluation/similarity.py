"""How alike two images are: PSNR and SSIM, as they are usually computed for 8-bit RGB.

Shapes: images uint8 [height, width, 3].
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

LARGEST_PSNR = 100.0
"""Of equal images, whose PSNR is infinite, and which must not make a mean infinite."""
_SIGMA, _RADIUS = 1.5, 5  # a Gaussian window of 11 x 11 pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, at most `LARGEST_PSNR`."""
    error = np.mean(np.square(one.astype(np.float64) - other.astype(np.float64)))
    return LARGEST_PSNR if error == 0 else min(LARGEST_PSNR, 10 * math.log10(255**2 / error))


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Structural similarity (Wang et al. 2004), mean over the channels and all windows that lie inside the image.

    Images are at least 11 pixels high and wide.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((alike / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean())


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted mean over each window inside the image, [height - 10, width - 10, 3]."""
    filtered: NDArray[np.float64] = gaussian_filter(values, (_SIGMA, _SIGMA, 0), radius=(_RADIUS, _RADIUS, 0))
    return filtered[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]

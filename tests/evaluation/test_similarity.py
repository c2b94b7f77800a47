"""PSNR and SSIM against values that can be computed by hand."""

import math

import numpy as np
import pytest

from vlatrack.evaluation.similarity import LARGEST_PSNR, psnr, ssim


def plain(value: int, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.full((*shape, 3), value, np.uint8)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (14, 18, 3), dtype=np.uint8)


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    assert psnr(plain(100), plain(110)) == pytest.approx(10 * math.log10(255**2 / 100))
    half = plain(100)
    half[:8] = 110
    assert psnr(plain(100), half) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(plain(0), plain(255)) == 0


def test_equal_images_have_the_largest_values() -> None:
    assert (psnr(noise(0), noise(0)), ssim(noise(0), noise(0))) == (LARGEST_PSNR, pytest.approx(1))


def test_ssim_of_two_plain_images_compares_their_means_alone() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 200 + c1) / (50**2 + 200**2 + c1)
    assert ssim(plain(50), plain(200)) == pytest.approx(expected)


def test_ssim_is_the_mean_over_windows_weighted_by_a_gaussian_of_11_pixels() -> None:
    """Computed window by window from the formula of Wang et al. (2004)."""
    one, other = noise(1), np.clip(noise(1).astype(int) // 2 + noise(2) // 3, 0, 255).astype(np.uint8)
    distance = np.arange(-5, 6)
    line = np.exp(-(distance**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for channel in range(3):
        for row in range(14 - 10):
            for column in range(18 - 10):
                x, y = (image[row : row + 11, column : column + 11, channel].astype(float) for image in (one, other))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                covariance = (weights * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(one, other) == pytest.approx(np.mean(values), abs=1e-9)
    assert 0.2 < ssim(one, other) < 0.9

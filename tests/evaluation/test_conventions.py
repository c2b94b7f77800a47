"""What recipes do to images and to the gripper, by values that were computed by hand or by the formula."""

import numpy as np
import pytest

from vlatrack.evaluation.conventions import (
    AS_RENDERED,
    ImageSteps,
    centre_crop,
    gripper_command,
    jpeg_round_trip,
    lanczos_resize,
    pad_resize,
)

NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """Pixels whose three channels are ten times their column, their row, and 100."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([10 * columns, 10 * rows, np.full_like(rows, 100)], axis=-1).astype(np.uint8)


def test_by_default_nothing_is_done() -> None:
    assert AS_RENDERED(NOISE) is NOISE


def test_an_image_that_is_not_square_is_padded_with_black_around_its_middle() -> None:
    wide = np.full((16, 32, 3), 200, np.uint8)
    padded = pad_resize(wide, 16)
    assert padded.shape == (16, 16, 3)
    assert (padded[4:12] == 200).all()
    assert not padded[:4].any()
    assert not padded[12:].any()
    assert np.array_equal(pad_resize(wide.transpose(1, 0, 2), 16), padded.transpose(1, 0, 2))
    assert pad_resize(NOISE, 24) is NOISE


def test_lanczos_resizing_is_that_of_the_formula() -> None:
    size, length = 10, 24
    centres = (np.arange(size) + 0.5) * length / size - 0.5
    distance = (np.arange(length) - centres[:, None]) / (length / size)  # in output pixels: the filter is widened
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    exact = np.einsum("ih,jw,hwc->ijc", weights, weights, NOISE.astype(np.float64))
    found = lanczos_resize(NOISE, size)
    assert found.dtype == np.uint8
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3


def test_a_centre_crop_has_the_corners_of_the_cropped_square() -> None:
    # A quarter of the area is half of each side: of the pixels 0..4 the places 1, 1.5, 2, 2.5 and 3.
    cropped = centre_crop(ramp(5, 5), 0.25)
    assert cropped[0, :, 0].tolist() == cropped[:, 0, 1].tolist() == [10, 15, 20, 25, 30]
    assert (cropped[..., 2] == 100).all()
    assert np.array_equal(centre_crop(NOISE, 1.0), NOISE)
    assert centre_crop(np.full((9, 7, 3), 255, np.uint8), 0.9).min() == 255


def test_compression_keeps_grey_and_halves_colours() -> None:
    grey = np.full((16, 16, 3), 77, np.uint8)
    assert np.array_equal(jpeg_round_trip(grey), grey)
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    blurred = jpeg_round_trip(stripes).astype(int)
    assert np.ptp(blurred[..., 0] - blurred[..., 2], axis=1).max() < 60, "neighbours share their colour"


def test_the_steps_come_in_the_order_of_their_recipe() -> None:
    steps = ImageSteps(jpeg=True, size=16, method="lanczos3", crop_area=0.9)
    assert np.array_equal(steps(NOISE), centre_crop(lanczos_resize(jpeg_round_trip(NOISE), 16), 0.9))
    assert ImageSteps(size=12)(NOISE).shape == (12, 12, 3)


def test_the_gripper_is_told_in_the_terms_of_the_simulator() -> None:
    actions = np.array([[0.5, -0.2], [0.5, 0.0], [0.5, 0.5], [0.5, 0.9]])
    assert gripper_command(actions, "raw") is actions
    assert gripper_command(actions, "sign").tolist() == [[0.5, -1], [0.5, 1], [0.5, 1], [0.5, 1]]
    assert gripper_command(actions, "openvla").tolist() == [[0.5, 1], [0.5, 1], [0.5, -1], [0.5, -1]]
    assert actions[0, 1] == -0.2


@pytest.mark.parametrize("convention", ["raw", "sign", "openvla"])
def test_a_gripper_that_is_no_number_stays_none(convention: str) -> None:
    assert np.isnan(gripper_command(np.array([0.0, np.nan]), convention)[-1])

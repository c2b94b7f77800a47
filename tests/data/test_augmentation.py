"""Crops and colours: what they change, and that the same draw changes all frames alike."""

import numpy as np
import pytest

from vlatrack.data.augmentation import Augmentation, augmentation_generator
from vlatrack.spec.data import AugmentationSpec

FIRST = 0.5475315989859313  # of the generator for (0, 0, 0, "a")
ALL = Augmentation(crop=0.8, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)


def draw(number: int = 0) -> np.random.Generator:
    return augmentation_generator(0, number, 3, "front")


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 20, 30, 3), dtype=np.uint8)


def test_frames_of_one_draw_change_alike_alone_and_together(frames) -> None:
    together = ALL.apply(frames, draw())
    alone = np.concatenate([ALL.apply(frames[i : i + 1], draw()) for i in (0, 65)])
    assert (alone == together[[0, 65]]).all()
    assert together.shape[0] == 70
    assert (np.array(together.shape[1:3]) >= (16, 24)).all()


def test_each_seed_variant_episode_and_camera_has_a_draw_of_its_own_and_always_the_same() -> None:
    keys = [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b"), (0, 0, 0, "a")]
    numbers = [augmentation_generator(*key).random() for key in keys]
    assert len(set(numbers)) == 5
    assert numbers[0] == numbers[-1]
    assert augmentation_generator(0, 0, 0, "a").random() == pytest.approx(FIRST), "augmented data would change"


def test_what_is_off_leaves_pixels_as_they_are(frames) -> None:
    kept = Augmentation().apply(frames, draw())
    assert (kept == frames).all()
    assert not np.shares_memory(kept, frames)
    assert Augmentation().is_off
    nearly = Augmentation(hue=1e-9).apply(frames, draw())
    assert np.abs(nearly.astype(int) - frames).max() <= 1


def test_a_crop_is_a_part_of_the_image_anywhere_in_it() -> None:
    y, x = np.mgrid[:100, :100]
    image = np.stack([y, x, 0 * x], axis=-1)[None].astype(np.uint8)
    corners, sizes = [], []
    for number in range(200):
        part = Augmentation(crop=0.8).apply(image, draw(number))[0]
        top, left = part[0, 0, :2]
        assert (part == image[0, top : top + len(part), left : left + part.shape[1]]).all()
        corners.append((top, left))
        sizes.append(len(part))
    assert min(sizes) in (80, 81)
    assert max(sizes) in (99, 100)
    assert np.max(corners, axis=0).min() > 15
    assert np.min(corners, axis=0).max() == 0


def test_brightness_scales_and_contrast_spreads_around_the_mean() -> None:
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    shades = {int(Augmentation(brightness=0.2).apply(grey, draw(number))[0, 0, 0, 0]) for number in range(100)}
    assert 80 <= min(shades) < 85
    assert 115 < max(shades) <= 120
    assert (Augmentation(contrast=0.5).apply(grey, draw()) == 100).all()


def test_saturation_and_hue_leave_grey_grey_and_luma_as_it_is() -> None:
    colours = np.random.default_rng(1).integers(90, 166, (1, 8, 8, 3), dtype=np.uint8)
    greys = np.full((1, 4, 4, 3), 77, np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    for strength in (Augmentation(hue=0.5), Augmentation(saturation=0.5)):
        assert np.abs(strength.apply(greys, draw()).astype(int) - 77).max() <= 1
        changed = strength.apply(colours, draw())
        assert np.abs(changed @ luma - colours @ luma).max() < 1.5
        assert np.abs(changed.astype(int) - colours).max() > 3


def test_an_augmentation_that_changes_nothing_is_refused() -> None:
    assert AugmentationSpec(crop=0.95, brightness=0.2).variants == 4
    with pytest.raises(ValueError, match="changes nothing"):
        AugmentationSpec()
    with pytest.raises(ValueError, match=r"less than or equal to 0\.5"):
        AugmentationSpec(hue=0.6)

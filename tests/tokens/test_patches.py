"""Pixels of image codes: the mean of what each code stood for."""

from pathlib import Path

import numpy as np
import pytest

from vlatrack.errors import CheckpointError
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.patches import CodePatches


def test_a_code_shows_the_mean_of_the_squares_that_it_stood_for() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[0, :16, :16], frames[0, :16, 16:], frames[0, 16:], frames[1] = 10, 20, 60, 60
    codes = np.array([[[0, 0], [2, 2]], [[2, 2], [2, 2]]])
    patches = CodePatches.fit(codes, frames, codebook_size=4)
    shown = patches.decode(np.array([[[0, 2], [1, 3]]]))[0]
    assert [int(shown[0, 0, 0]), int(shown[0, 16, 0])] == [15, 60]
    assert (shown[16:] == round(frames.mean())).all()  # codes that did not occur show the mean of everything


def test_the_pixels_of_a_square_keep_their_places() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    codes = np.arange(6).reshape(1, 2, 3)
    assert (CodePatches.fit(codes, frame, codebook_size=6).decode(codes) == frame).all()


def test_what_is_no_code_is_grey() -> None:
    patches = CodePatches(np.zeros((3, 16, 16, 3), np.uint8))
    assert (patches.decode(np.array([[[-1, 3]]])) == 128).all()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer(frames: np.ndarray) -> ImageTokenizer:
    layout = TokenLayout(first_image_code=7)
    return ImageTokenizer.fit(frames, image_size=32, codebook_size=64, base_channels=32, seed=0, layout=layout)


def test_a_tokenizer_decodes_its_ids_and_does_not_change_by_that(
    tokenizer: ImageTokenizer, frames: np.ndarray, tmp_path: Path
) -> None:
    """With a code for each square that there is, decoding gives back the images."""
    before, ids = tokenizer.fingerprint(), tokenizer.encode(frames)
    assert tokenizer.decoder is None
    tokenizer.fit_decoder(frames)
    assert np.abs(tokenizer.decode(ids).astype(int) - frames).max() <= 1
    assert tokenizer.fingerprint() == before
    tokenizer.save(tmp_path / "saved")
    again = ImageTokenizer.load(tmp_path / "saved")
    assert (again.decode(ids) == tokenizer.decode(ids)).all()
    assert (again.decode(np.array([[[0, 8803]]])) == 128).all()  # ids of no image


def test_damaged_pixels_are_one_line(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    assert CodePatches.load(tmp_path) is None
    (tmp_path / "image_patches.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"image_patches\.safetensors: the pixels of image codes cannot be read"):
        CodePatches.load(tmp_path)

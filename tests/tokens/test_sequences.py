import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vlatrack.errors import CheckpointError, TokenError
from vlatrack.tokens.batch import collate
from vlatrack.tokens.images import FittedEncoder, ImageTokenizer
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout
from vlatrack.tokens.prompts import VLA_PROMPT, TokenSequence, vla_sequence, world_model_sequence
from vlatrack.tokens.squares import squares_of
from vlatrack.tokens.text import ByteTokenizer

LAYOUT = TokenLayout()
IMAGE = np.asarray([[10, 11], [12, 13]])
FRAMED_IMAGE = [8197, 8805, 8805, 10, 11, 8803, 12, 13, 8803, 8196]


def _vla(*, text: list[int], steps: int = 2, max_length: int = 100) -> TokenSequence:
    ids = 10010 + np.arange(steps * 3).reshape(steps, 3)
    actions = np.zeros((steps, 3), np.float32)
    return vla_sequence(
        text=text,
        state=np.asarray([15600, 15601]),
        images=[IMAGE],
        action_ids=ids,
        actions=actions,
        layout=LAYOUT,
        max_length=max_length,
    )


def test_vla_sample_is_text_state_images_then_one_block_a_step() -> None:
    sequence = _vla(text=[16500])
    prompt = [1, 16500, 15504, 15600, 15601, 16004, *FRAMED_IMAGE, 8710]
    answer = [10004, 10010, 10011, 10012, 15004, 10004, 10013, 10014, 10015, 15004, 8710]
    assert sequence.input_ids.tolist() == prompt + answer
    assert sequence.labels.tolist() == [IGNORED_LABEL] * len(prompt) + answer


def test_world_model_sample_asks_for_the_next_image() -> None:
    sequence = world_model_sequence(
        text=[16500],
        history=[([IMAGE], np.asarray([10010, 10011]))],
        next_images=[IMAGE],
        layout=LAYOUT,
        max_length=100,
    )
    prompt = [1, 16500, *FRAMED_IMAGE, 10004, 10010, 10011, 15004, 8710]
    assert sequence.input_ids.tolist() == [*prompt, *FRAMED_IMAGE, 8710]
    assert sequence.labels.tolist() == [IGNORED_LABEL] * len(prompt) + [*FRAMED_IMAGE, 8710]


def test_a_sample_longer_than_the_context_says_how_long_it_is_and_what_helps() -> None:
    with pytest.raises(TokenError, match=r"has 227 tokens \(201 of them text\).*max_seq_len is 128.*shorten"):
        _vla(text=[16500] * 200, max_length=128)


def test_byte_tokenizer_is_reversible_and_stays_clear_of_every_other_token() -> None:
    tokenizer = ByteTokenizer(LAYOUT)
    text = VLA_PROMPT.format(instruction="öffne das Fenster 開ける")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids) > LAYOUT.state_end
    assert max(ids) < LAYOUT.vocabulary_size


def test_batch_indexes_the_numbers_of_every_action_step_in_every_row() -> None:
    world = world_model_sequence(
        text=[16500],
        history=[([IMAGE], np.asarray([10010, 10011, 10012]))],
        next_images=[IMAGE, IMAGE],
        layout=LAYOUT,
        max_length=200,
    )
    batch = collate([_vla(text=[16500]), world, _vla(text=[16500, 16501])], LAYOUT)
    assert batch.action_rows.tolist() == [0, 2]
    assert batch.prompt_lengths.tolist() == [17, 18]
    assert batch.longest_prompt == 18
    assert batch.targets[batch.action_index].tolist() == [[[10010, 10011, 10012], [10013, 10014, 10015]]] * 2
    assert batch.targets[batch.image_index].tolist() == FRAMED_IMAGE[1:-1] * 2
    assert batch.image_slot.tolist() == [8] * 8 + [9] * 8
    assert batch.weighted_targets == 8
    # Each supervised position predicts the id that follows it.
    following = batch.input_ids.flatten()[batch.supervised + 1]
    assert following.tolist() == batch.targets.tolist()


def test_batch_without_any_action_has_an_empty_index() -> None:
    world = world_model_sequence(
        text=[16500], history=[([IMAGE], np.asarray([10010]))], next_images=[IMAGE], layout=LAYOUT, max_length=99
    )
    batch = collate([world], LAYOUT)
    assert batch.action_rows.tolist() == []
    assert batch.actions is None
    assert batch.longest_prompt == 0


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)


def fitted(frames: np.ndarray, encoder: FittedEncoder) -> ImageTokenizer:
    return ImageTokenizer.fit(frames, image_size=32, codebook_size=16, seed=0, layout=LAYOUT, encoder=encoder)


@pytest.fixture(scope="module", params=["squares", "projections", "convolutions"])
def encoder(request: pytest.FixtureRequest) -> FittedEncoder:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(frames: np.ndarray, encoder: FittedEncoder) -> ImageTokenizer:
    return fitted(frames, encoder)


def test_fitted_image_tokenizer_gives_the_same_ids_after_saving_and_loading(tmp_path, frames, tokenizer) -> None:
    tokenizer.save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    ids = tokenizer.encode(frames)
    assert ids.shape == (12, 2, 2)
    assert ids.min() >= LAYOUT.first_image_code
    assert ids.max() < LAYOUT.first_image_code + 16
    assert np.array_equal(loaded.encode(frames), ids)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_fitting_twice_with_one_seed_gives_the_same_tokenizer(frames, tokenizer, encoder) -> None:
    assert fitted(frames, encoder).fingerprint() == tokenizer.fingerprint()


def test_fitted_codes_tell_to_two_pixels_where_a_small_thing_is() -> None:
    """By ridge regression from the pixels of the codes, over scenes in which a ring of twelve pixels lies anywhere."""
    generator = np.random.default_rng(0)
    places = generator.uniform(16, 48, (400, 2))
    y, x = np.mgrid[:64, :64]
    distances = np.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    scenes = np.full((400, 64, 64, 3), (200, 180, 150), np.uint8)
    scenes[np.abs(distances - 6) < 1.5] = (60, 60, 70)
    tokenizer = ImageTokenizer.fit(scenes[:300], image_size=64, codebook_size=256, seed=0, layout=LAYOUT)
    tokenizer.fit_decoder(scenes[:300])
    seen = tokenizer.decode(tokenizer.encode(scenes)).reshape(400, -1).astype(np.float64) / 255
    seen, middle = seen - seen[:300].mean(axis=0), places[:300].mean(axis=0)
    kernel = seen[:300] @ seen[:300].T + 10 * np.eye(300)
    found = seen[300:] @ (seen[:300].T @ np.linalg.solve(kernel, places[:300] - middle)) + middle
    assert np.abs(found - places[300:]).mean() < 2, "8 without seeing"


def test_settings_and_weights_of_two_image_tokenizers_are_one_clear_error(tmp_path, frames) -> None:
    for encoder in ("squares", "projections"):
        fitted(frames, encoder).save(tmp_path / encoder)
    (tmp_path / "squares" / "image_tokenizer.json").replace(tmp_path / "projections" / "image_tokenizer.json")
    with pytest.raises(CheckpointError, match="another geometry; restore its files"):
        ImageTokenizer.load(tmp_path / "projections")


def test_squares_of_bytes_are_those_of_floats_to_the_bit() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8))
    floats = images.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)
    squares = squares_of(images.permute(0, 3, 1, 2))
    assert (squares == squares_of(floats)).all()
    corner = floats[1, :, 16:32, 32:48].flatten()
    assert (squares[2 * 3 + 5] == corner).all(), "row by row, each channel by channel"


def test_each_place_of_projections_has_ids_of_its_own(frames) -> None:
    ids = fitted(frames, "projections").encode(frames) - LAYOUT.first_image_code
    assert (ids // 4 == [[0, 1], [2, 3]]).all()
    assert all(len(np.unique(ids[:, row, column])) > 1 for row in (0, 1) for column in (0, 1))


def test_a_damaged_image_tokenizer_is_one_clear_error(tmp_path, tokenizer) -> None:
    tokenizer.save(tmp_path)
    weights = tmp_path / "image_tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        ImageTokenizer.load(tmp_path)


def test_settings_of_an_image_tokenizer_that_lack_a_key_are_one_clear_error(tmp_path, tokenizer) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "image_tokenizer.json").write_text('{"image_size": 32}\n')
    with pytest.raises(CheckpointError, match=r"image_tokenizer\.json: not the settings .*code_ids") as caught:
        ImageTokenizer.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@contextmanager
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 1000 bytes: what a full disk does, for files that are renamed into place as well.

    Only around the one call: the log that pytest writes may be a file, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_image_tokenizer_that_the_disk_does_not_take_is_one_clear_error(tmp_path, tokenizer) -> None:
    with (
        pytest.raises(CheckpointError, match=r"the image tokenizer cannot be written .*too large") as caught,
        small_files_only(),
    ):
        tokenizer.save(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_of_an_image_tokenizer_on_a_full_disk_are_one_clear_error(tmp_path, tokenizer) -> None:
    (tmp_path / "image_tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"the image tokenizer cannot be written .*No space left"):
        tokenizer.save(tmp_path)

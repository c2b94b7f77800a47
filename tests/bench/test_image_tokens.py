"""`vlatrack bench data --only images`: image tokens beside the bare encoder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vlatrack.bench import image_tokens
from vlatrack.bench.image_tokens import ImageTokenSpeed, measure_image_tokens
from vlatrack.cli.bench_data import PARTS


def test_tokens_of_all_images_are_timed_as_often_as_the_bare_encoder() -> None:
    speed = next(measure_image_tokens(images=8, rounds=2))
    assert (speed.encoder, speed.image_size, speed.tokens) == ("squares", 64, 8 * 16)
    assert [len(times) for times in (speed.bare_s, speed.in_size_s, speed.resized_s)] == [2, 2, 2]
    assert min(speed.bare_s + speed.in_size_s + speed.resized_s) > 0


def test_the_share_is_that_of_rounds_in_turn_so_that_a_slow_one_does_not_count() -> None:
    speed = ImageTokenSpeed("squares", 64, 160, (1.0, 10.0, 1.0), (1.25, 12.5, 2.0), (2.0, 20.0, 2.0))
    assert speed.share(speed.in_size_s) == pytest.approx(0.8)
    assert speed.tokens_per_s(speed.resized_s) == 80


def test_squares_in_size_have_a_bound_and_those_to_be_resized_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*, images: int, rounds: int) -> Iterator[ImageTokenSpeed]:
        yield ImageTokenSpeed("squares", 64, 160, (1.0,), (1.25,), (4.0,))

    monkeypatch.setattr(image_tokens, "measure_image_tokens", measured)
    shares = [figure for figure in PARTS["images"](tmp_path, 100, 1, 0) if figure.unit == "x"]
    assert [(figure.value, figure.bound) for figure in shares] == [(0.8, 0.8), (0.25, None)]

"""What can be read from image tokens, compared with pixels."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.data.formats.opening import open_dataset
from vlatrack.data.probe import ProbeFrames, fitted, probe, probe_frames
from vlatrack.errors import DataError

MINI = Path("experiments/data/metaworld-mini")


def rings(count: int = 120) -> ProbeFrames:
    """Scenes of twelve episodes in which a ring of twelve pixels lies anywhere."""
    places = np.random.default_rng(0).uniform(16, 48, (count, 2))
    y, x = np.mgrid[:64, :64]
    distances = np.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    frames = np.full((count, 64, 64, 3), (200, 180, 150), np.uint8)
    frames[np.abs(distances - 6) < 1.5] = (60, 60, 70)
    return ProbeFrames(frames, places, np.arange(count) // 10)


def test_more_codes_tell_more_of_a_place_and_none_as_much_as_pixels_or_as_little_as_nothing() -> None:
    few, many = (
        probe(rings(), fitted(image_size=64, codebook_size=codes, encoder="squares", seed=0), folds=3)
        for codes in (4, 128)
    )
    assert many.pixels.mean < many.looks.mean < few.looks.mean < few.blind.mean
    assert many.pixels.mean < many.ids.mean < many.blind.mean
    assert (few.pixels.of_folds == many.pixels.of_folds).all()
    assert many.blind.mean > 2 * many.looks.mean
    assert many.pixels.ratio(many.pixels).tolist() == [1, 1, 1]


def test_the_hand_is_read_from_ids_of_projections_far_better_than_from_those_of_squares() -> None:
    source = open_dataset(MINI, action="action", state="observation.state")
    chosen = source.episodes()[:20]
    seen = probe_frames(source, chosen, source.cameras[0], numbers=[0, 1, 2], count=500)
    squares = probe(seen, fitted(image_size=64, codebook_size=256, encoder="squares", seed=0), folds=3)
    projections = probe(seen, fitted(image_size=64, codebook_size=2048, encoder="projections", seed=0), folds=3)
    assert projections.ids.mean < 0.8 * squares.ids.mean


def test_nothing_is_read_of_what_is_not_in_the_image() -> None:
    seen = rings(120)
    elsewhere = ProbeFrames(seen.frames, np.random.default_rng(5).normal(size=(120, 2)), seen.episodes)
    found = probe(elsewhere, fitted(image_size=64, codebook_size=16, encoder="squares", seed=0), folds=3)
    for reading in (found.pixels, found.ids, found.looks):
        assert reading.mean > 0.95 * found.blind.mean


def test_fewer_episodes_than_folds_are_refused() -> None:
    seen = rings(20)
    with pytest.raises(DataError, match="2 episodes cannot be dealt to 3 folds"):
        probe(seen, fitted(image_size=64, codebook_size=4, encoder="squares", seed=0), folds=3)


def test_frames_are_spread_over_all_episodes_with_their_states() -> None:
    source = open_dataset(MINI, action="action", state="observation.state")
    episodes = [source.episodes()[i] for i in (0, 3)]
    found = probe_frames(source, episodes, source.cameras[0], numbers=[2], count=20)
    assert 18 <= len(found.frames) <= 26
    assert set(found.episodes) == {0, 3}
    assert episodes[1].states is not None
    assert (found.frames[-1] == source.frames(episodes[1], source.cameras[0])).all(axis=(1, 2, 3)).any()
    assert found.targets[-1, 0] in episodes[1].states[:, 2]


def test_the_command_prints_ids_looks_and_pixels_and_refuses_what_is_not_there() -> None:
    run = CliRunner().invoke(
        app, ["data", "probe", str(MINI), "--frames", "90", "--codebook-size", "8", "--folds", "3"]
    )
    assert run.exit_code == 0, run.output
    for row in ("squares, 64 pixels, 8 codes", "ids", "looks of the codes", "pixels", "nothing"):
        assert row in run.output
    wrong = CliRunner().invoke(app, ["data", "probe", str(MINI), "--camera", "wrist"])
    assert isinstance(wrong.exception, DataError)
    assert "no camera 'wrist'; its cameras: observation.images.corner4" in str(wrong.exception)
    beyond = CliRunner().invoke(app, ["data", "probe", str(MINI), "--number", "9"])
    assert "its state has 4 numbers" in str(beyond.exception)
    few = CliRunner().invoke(app, ["data", "probe", str(MINI), "--encoder", "projections", "--codebook-size", "40"])
    assert isinstance(few.exception, DataError)
    assert "codes of its own for each of 16 places of 64 pixels: choose a multiple of 16" in str(few.exception)

"""`vlatrack bench data`: the parts that read files."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vlatrack.bench.data_video import _repeat
from vlatrack.cli.main import app
from vlatrack.data.video import VideoWriter, stream_video


def test_a_video_is_made_longer_without_encoding_and_every_frame_is_at_its_time(tmp_path: Path) -> None:
    video, longer = tmp_path / "video.mp4", tmp_path / "longer.mp4"
    writer = VideoWriter(video, fps=10, height=32, width=32)
    writer.add(np.full((32, 32, 3), 10 * number, np.uint8) for number in range(20))
    writer.close()

    _repeat(video, longer, 50)

    once, repeated = (
        np.concatenate(list(stream_video(file, np.arange(frames) / 10, fps=10)))
        for file, frames in ((video, 20), (longer, 60))
    )
    assert np.array_equal(repeated, np.concatenate([once] * 3))


@pytest.mark.slow
def test_the_parts_that_read_files_print_their_figures_beside_their_bounds(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    words = ["bench", "data", "--only", "video,passes", "--samples", "400", "--rounds", "1", "-o", str(output)]

    result = CliRunner().invoke(app, words, catch_exceptions=False)

    figures = {figure["what"]: figure for figure in json.loads(output.read_text())}
    assert result.exit_code == (0 if all(figure["kept"] for figure in figures.values()) else 1)
    assert figures["video, private memory at the peak, 200 frames"]["kept"]
    assert figures["video, private memory at the peak, 200 frames"]["bound"] == 200
    assert {figure["bound"] for what, figure in figures.items() if "against reading" in what} == {1.5}
    assert {figure["bound"] for what, figure in figures.items() if "against PyAV alone" in what} == {1.2}

"""An episode to look at: its video, and its recording for Rerun."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from toy_source import STEPS, ToySource
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.view.choice import find_episode
from vlatrack.data.view.rerun import write_recording
from vlatrack.data.view.video import EpisodePicture, write_video
from vlatrack.errors import DataError, MissingPackageError

LIBERO = Path(__file__).parent / "fixtures" / "libero-hdf5"


def view(*words: str | Path) -> str:
    result = CliRunner().invoke(app, ["data", "view", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_video_has_every_step_in_its_own_speed_and_all_cameras(tmp_path: Path) -> None:
    told = view(LIBERO, "--episode", "1", "-o", tmp_path / "demo.mp4")
    assert told == f"wrote {tmp_path / 'demo.mp4'}: episode 1, 6 steps, 0.3 s, agentview_rgb, eye_in_hand_rgb\n"
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]
    with av.open(str(tmp_path / "demo.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.codec_context.pix_fmt) == ("h264", 20, "yuv420p")
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    source = LiberoDataset(LIBERO)
    episode = source.episodes()[1]
    assert len(pictures) == episode.length
    for number, camera in enumerate(source.cameras):
        left = number * (256 + 6)
        for picture, frame in zip(pictures, source.frames(episode, camera), strict=True):
            shown = picture[42:298, left : left + 256]
            assert np.abs(shown - frame.repeat(4, axis=0).repeat(4, axis=1)).mean() < 6


def test_bars_show_each_number_of_the_action_from_the_middle() -> None:
    actions = np.array([[1.0, 0.0, -2.0], [-0.5, 0.0, 1.0]], np.float32)
    picture = EpisodePicture(
        Episode(0, "push", actions, None), names=("x", "y", "z"), sizes={"front": (32, 32)}, fps=10
    )
    black = {"front": np.zeros((32, 32, 3), np.uint8)}
    widths = []
    for step in range(2):
        drawn = picture.draw(step, black)
        assert drawn.shape == (picture.height, picture.width, 3)
        is_bar = (drawn[-60:] == (86, 156, 255)).all(axis=2)
        widths.append([int(is_bar[row * 18 : row * 18 + 18].any(axis=0).sum()) for row in range(3)])
        middle = {int(np.flatnonzero(is_bar[row * 18 : row * 18 + 18].any(axis=0)).mean()) for row in (0, 2)}
        assert len(middle) == 2  # one goes to the right, the other one to the left
    full = widths[0][0]
    assert full == pytest.approx(widths[0][2], abs=2)
    assert widths[1][0] == pytest.approx(full / 2, abs=2)
    assert widths[1][2] == pytest.approx(full / 2, abs=2)
    assert widths[0][1] < 2


def test_pictures_have_even_sizes_whatever_is_in_them() -> None:
    names = tuple(f"a very long name of a joint {number}" for number in range(17))
    episode = Episode(0, "word " * 500, np.zeros((1, 17), np.float32), None)
    sizes = {"wide": (31, 77), "tall": (601, 333)}
    picture = EpisodePicture(episode, names=names, sizes=sizes, fps=2.5)
    assert (picture.height % 2, picture.width % 2) == (0, 0)
    assert picture.height < 800
    images = {camera: np.zeros((*size, 3), np.uint8) for camera, size in sizes.items()}
    assert picture.draw(0, images).shape == (picture.height, picture.width, 3)


def test_a_recording_for_rerun_has_images_actions_and_states(tmp_path: Path) -> None:
    chunk = pytest.importorskip("rerun.chunk")
    source = ToySource(episodes=2)
    write_recording(source, source.episodes()[1], ["front"], tmp_path / "demo.rrd")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.rrd"]
    rows: dict[str, int] = {}
    values: list[float] = []
    for part in chunk.RrdReader(tmp_path / "demo.rrd").stream().to_chunks():
        rows[part.entity_path] = rows.get(part.entity_path, 0) + part.num_rows
        if part.entity_path == "/action/action\\ 0":
            (column,) = (name for name in part.to_record_batch().schema.names if "Scalars" in name)
            values += [value for (value,) in part.to_record_batch()[column].to_pylist()]
    logged = ["/camera/front", "/action/action\\ 0", "/action/action\\ 1", "/state/0", "/state/1"]
    assert {name: rows[name] for name in logged} == dict.fromkeys(logged, STEPS)
    assert rows["/instruction"] == 1
    assert sorted(values) == sorted(source.episodes()[1].actions[:, 0].tolist())


class Failing(ToySource):
    def image_size(self, camera: str) -> tuple[int, int]:
        return 32, 32

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        raise DataError("the image is damaged")


def test_an_episode_that_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    source = Failing()
    for write in (write_video, write_recording):
        if write is write_recording:
            pytest.importorskip("rerun")
        with pytest.raises(DataError, match="the image is damaged"):
            write(source, source.episodes()[0], ["front"], tmp_path / "demo.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_video, write_recording])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(write: Callable[..., None], tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    if write is write_recording:
        pytest.importorskip("rerun")
    source = LiberoDataset(LIBERO)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(DataError, match=r"demo\.mp4: cannot be written \(.*\); free space") as told:
            write(source, source.episodes()[0], source.cameras, tmp_path / "demo.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_shown_is_one_line(tmp_path: Path, monkeypatch) -> None:
    told = {
        ("--episode", "9", "-o", "x.mp4"): "no episode 9; its episodes: 0 to 1",
        ("--camera", "wrist", "-o", "x.mp4"): "no camera 'wrist'; its cameras: agentview_rgb, eye_in_hand_rgb",
        (): "give -o FILE.mp4 for a video, -o FILE.rrd for a recording of Rerun, or --rerun to see it now",
        ("-o", "x.gif"): "x.gif: expected a file that ends with .mp4 or .rrd",
        ("--rerun", "-o", "x.mp4"): "x.mp4: expected a file that ends with .rrd",
    }
    for words, line in told.items():
        with pytest.raises(DataError, match=line):
            view(LIBERO, *words)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    if "rerun" in sys.modules:
        with pytest.raises(DataError, match=r"no display here to open Rerun on; give -o FILE\.rrd"):
            view(LIBERO, "--rerun")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"x\.mp4: cannot be written .File exists.; free space, or choose another"):
        view(LIBERO, "-o", tmp_path / "file" / "x.mp4")
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[rerun\]'"):
        view(LIBERO, "-o", tmp_path / "x.rrd")


def test_an_episode_is_found_behind_a_bad_one() -> None:
    class Skipping(ToySource):
        def readable_episodes(self, on_bad):
            for episode in self.episodes():
                if episode.index == 1:
                    on_bad(1, DataError("episode 1 is bad"))
                else:
                    yield episode

    assert find_episode(Skipping(), 2).index == 2
    with pytest.raises(DataError, match="episode 1 is bad"):
        find_episode(Skipping(), 1)

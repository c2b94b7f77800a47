"""Frames are found by the times of an episode's steps, wherever they are cut, in whatever way they were encoded."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_damage import small_dataset
from lerobot_v21 import as_v21

from vlatrack.data import pieces
from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.video import stream_video
from vlatrack.errors import DataError

CAMERA = "observation.images.front"


def write_video(path: Path, times_ms: list[int], *, codec: str = "libx264", side: int = 64, **options: str) -> None:
    """A video in which the brightness of the frame tells its number: 4 a step, as far as 255."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width = stream.height = side
        stream.pix_fmt, stream.options = "yuv420p", options
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), min(4 * number, 255), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbers_at(path: Path, times_s: list[float], *, fps: float, regular: bool) -> list[int]:
    """The numbers of the frames at some times."""
    found = np.concatenate(list(stream_video(path, np.array(times_s), fps=fps, regular=regular)))
    return [round(frame.mean() / 4) for frame in found]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "250", "bf": "3"}),
        ("libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}),
        ("libx265", {"x265-params": "log-level=error:keyint=10:bframes=3"}),
        ("libsvtav1", {"g": "2", "svtav1-params": "lp=1"}),
    ],
)
def test_any_cut_of_any_encoding_is_what_was_put_in(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    times = [50 * step for step in range(40)]
    write_video(tmp_path / "video.mp4", times, codec=codec, **options)
    for start in (0, 1, 9, 11, 17, 30, 39):
        stop = min(start + 5, 40)
        cut = [times[step] / 1000 for step in range(start, stop)]
        assert numbers_at(tmp_path / "video.mp4", cut, fps=20, regular=True) == list(range(start, stop)), (codec, start)


def test_frames_of_a_clock_that_varies_are_found_by_their_times(tmp_path: Path) -> None:
    times = [0, 48, 105, 150, 210, 270, 300, 340]
    write_video(tmp_path / "video.mp4", times)
    wanted = [1, 2, 4, 5, 7]  # the table has fewer steps than the video has frames
    seconds = [times[number] / 1000 + 0.0004 for number in wanted]
    assert numbers_at(tmp_path / "video.mp4", seconds, fps=20, regular=False) == wanted
    with pytest.raises(DataError, match=r"frame 1 after 0\.000 s, which belongs at 0\.075 s, is damaged or missing"):
        numbers_at(tmp_path / "video.mp4", [0, 0.075], fps=20, regular=False)


def test_a_regular_episode_must_have_a_frame_for_each_step_and_no_other(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", [0, 50, 100, 150, 200])
    assert numbers_at(tmp_path / "video.mp4", [0.001, 0.051, 0.101], fps=20, regular=True) == [0, 1, 2]
    for fps in (10, 40):
        with pytest.raises(DataError, match=r"frame 1 after 0\.000 s"):
            numbers_at(tmp_path / "video.mp4", [step / fps for step in range(3)], fps=fps, regular=True)
    with pytest.raises(DataError, match=r"4 of 9 frames from 0\.050 s on; the video is cut off"):
        numbers_at(tmp_path / "video.mp4", [0.05 * step for step in range(1, 10)], fps=20, regular=True)


@pytest.fixture
def irregular(tmp_path: Path) -> LeRobotDataset:
    """A v2.1 dataset of three episodes; the clock of the last one varied, in table and video alike."""
    folder = as_v21(small_dataset(tmp_path / "new"), tmp_path / "old")
    table = folder / "data/chunk-000/episode_000002.parquet"
    rows = pq.read_table(table)
    times = [100 * step + (0 if step % 3 else 30) for step in range(rows.num_rows)]
    seconds = pa.array([time / 1000 for time in times], pa.float32())
    pq.write_table(rows.set_column(rows.column_names.index("timestamp"), "timestamp", seconds), table)
    write_video(folder / f"videos/chunk-000/{CAMERA}/episode_000002.mp4", times)
    return LeRobotDataset(folder)


def test_an_episode_whose_clock_varied_has_the_frames_of_its_timestamps(irregular: LeRobotDataset) -> None:
    episode = irregular.episodes()[2]
    steps = list(range(episode.length))
    assert [round(frame.mean() / 4) for frame in irregular.frames(episode, CAMERA)] == steps
    cut = np.concatenate(list(irregular.stream_frames(episode, CAMERA, 3, 5)))
    assert [round(frame.mean() / 4) for frame in cut] == [3, 4]
    assert irregular.problem_of(episode, [CAMERA]) is None


def test_an_offset_of_all_timestamps_is_followed(tmp_path: Path) -> None:
    """A part of a recording, whose video was cut from the recording's, and whose table was not renumbered."""
    folder = as_v21(small_dataset(tmp_path / "new"), tmp_path / "old")
    table = folder / "data/chunk-000/episode_000000.parquet"
    rows = pq.read_table(table)
    times = [100 * step for step in range(5, 5 + rows.num_rows)]
    for name, values in (("timestamp", [time / 1000 for time in times]), ("frame_index", range(5, 5 + len(times)))):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    pq.write_table(rows, table)
    write_video(folder / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", [0, *times])
    dataset = LeRobotDataset(folder)
    frames = dataset.frames(dataset.episodes()[0], CAMERA)
    assert [round(frame.mean() / 4) for frame in frames] == list(range(1, 1 + len(times)))


def test_pieces_are_small_whatever_the_length_and_whole_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "DECODED_BYTES", 3 * 32 * 32 * 3)
    for storage in ("video", "png"):
        dataset = LeRobotDataset(small_dataset(tmp_path / storage, storage))
        episode: Episode = dataset.episodes()[0]
        lengths = [len(piece) for piece in dataset.stream_frames(episode, CAMERA, 0, episode.length)]
        assert max(lengths) == 3
        assert sum(lengths) == episode.length > 3
        assert len(dataset.frames(episode, CAMERA)) == episode.length
        assert list(dataset.stream_frames(episode, CAMERA, 2, 2)) == []


def test_frames_that_differ_in_size_are_told(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "demos", "png")
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table[CAMERA].to_pylist()
    cells[1] = {"bytes": _png(48), "path": None}
    column = pa.array(cells, table.schema.field(CAMERA).type)
    pq.write_table(table.set_column(table.column_names.index(CAMERA), CAMERA, column), path)
    dataset = LeRobotDataset(folder)
    with pytest.raises(DataError, match=rf"episode 0: {CAMERA}: images differ in size, \(48, 48\) and \(32, 32\)"):
        dataset.frames(dataset.episodes()[0], CAMERA)


def _png(side: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_dataset_without_timestamps_is_read_by_its_fps(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "demos")
    before = LeRobotDataset(folder)
    frames = before.frames(before.episodes()[1], CAMERA)
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop(["timestamp", "frame_index"]), path)
    info = json.loads((folder / "meta/info.json").read_text())
    del info["features"]["timestamp"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    after = LeRobotDataset(folder)
    assert np.array_equal(after.frames(after.episodes()[1], CAMERA), frames)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from vlatrack.data.video import stream_video

times = np.arange(int(sys.argv[2]), int(sys.argv[3])) / 20
assert sum(len(piece) for piece in stream_video(Path(sys.argv[1]), times, fps=20)) == len(times)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_an_episode(tmp_path: Path) -> None:
    """2,000 frames have 1.8 GB of pixels; the libraries alone take about 50 MB."""
    video = tmp_path / "video.mp4"
    write_video(video, [50 * step for step in range(2000)], side=560, preset="ultrafast", g="30")
    for start, stop in ((0, 2000), (900, 1900)):
        words = [sys.executable, "-c", MEMORY, str(video), str(start), str(stop)]
        kilobytes = int(subprocess.run(words, check=True, capture_output=True, text=True, timeout=250).stdout)
        assert kilobytes < 200_000, (start, stop)

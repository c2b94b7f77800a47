"""Any dataset becomes a LeRobot v3.0 one."""

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rlds_writer import episode_features, steps_of, write_rlds
from toy_source import STEPS, ToySource
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.data.convert import convert, short_names
from vlatrack.data.episodes import Episode, EpisodeSource, action_names
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.errors import DataError

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"


def toy_rlds(folder: Path) -> Path:
    """Six episodes; the images of episode 2 are none, and the record of episode 4 is damaged."""
    source = ToySource(episodes=6)
    records = [episode_features(source, episode) for episode in source.episodes()]
    records[2]["steps/observation/front"] = [b"no image"] * STEPS
    write_rlds(folder, records, steps=steps_of(source, 32, 32), shards=1)
    (file,) = folder.glob("*.tfrecord-*")
    content, at = bytearray(file.read_bytes()), 0
    for _ in range(4):
        at += 16 + int.from_bytes(content[at : at + 8], "little")
    content[at + 100] ^= 1
    file.write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["libero", "toy", "rlds", pytest.param("lerobot", marks=pytest.mark.slow)])
def test_as_png_every_action_state_and_pixel_stays(kind: str, tmp_path: Path) -> None:
    source: EpisodeSource
    if kind == "rlds":
        pytest.importorskip("crc32c")
        toy = ToySource(episodes=3)
        records = [episode_features(toy, episode) for episode in toy.episodes()]
        source = RldsDataset(write_rlds(tmp_path / "rlds", records, steps=steps_of(toy, 32, 32)), fps=10)
    else:
        source = {
            "libero": lambda: LiberoDataset(FIXTURES / "libero-hdf5"),
            "lerobot": lambda: LeRobotDataset(FIXTURES / "lerobot-v3-video"),
            "toy": lambda: ToySource(episodes=2),
        }[kind]()
    converted = convert(source, tmp_path / "out", storage="png")
    read_back, episodes = LeRobotDataset(tmp_path / "out"), source.episodes()
    assert (converted.episodes, converted.frames) == (len(episodes), sum(episode.length for episode in episodes))
    assert read_back.fps == source.fps
    assert tuple(read_back.action_names) == action_names(source)
    assert read_back.state_names == getattr(source, "state_names", read_back.state_names)
    for ours, theirs in zip(read_back.episodes(), episodes, strict=True):
        assert ours.task == theirs.task
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.states, theirs.states)
        for camera, short in short_names(source.cameras).items():
            frames = read_back.frames(ours, f"observation.images.{short}")
            assert np.array_equal(frames, source.frames(theirs, camera))


def test_without_skip_bad_a_bad_episode_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    pytest.importorskip("crc32c")
    source = RldsDataset(toy_rlds(tmp_path / "rlds"), fps=10)
    with pytest.raises(DataError, match="episode 4: its checksum is wrong"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["rlds"]


def test_bad_episodes_are_left_out_whole_and_listed(tmp_path: Path) -> None:
    pytest.importorskip("crc32c")
    words = [
        "data",
        "convert",
        str(toy_rlds(tmp_path / "rlds")),
        "--fps",
        "10",
        "-o",
        str(tmp_path / "out"),
        "--skip-bad",
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    told = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert ["episode 4: its checksum" in told[0], "episode 2: image 0 of" in told[1], len(told)] == [True, True, 2]
    last = result.stdout.splitlines()[-1]
    assert last.startswith(
        f"wrote {tmp_path / 'out'}: 4 episodes, 56 steps, 1 task, 1 camera as video; 2 bad episodes left out, "
    )
    dataset, toy = LeRobotDataset(tmp_path / "out"), ToySource(episodes=6)
    kept = [toy.episodes()[index] for index in (0, 1, 3, 5)]
    for ours, theirs in zip(dataset.episodes(), kept, strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
        difference = dataset.frames(ours, "observation.images.front").astype(int) - toy.frames(theirs, "front")
        assert np.abs(difference).mean() < 5
    (table,) = (tmp_path / "out" / "meta" / "episodes").rglob("*.parquet")
    starts = pq.read_table(table)["videos/observation.images.front/from_timestamp"].to_pylist()
    assert starts == pytest.approx([0.0, 1.4, 2.8, 4.2])  # nothing of a bad episode lies between them


def test_only_the_tasks_that_are_asked_for_are_written(tmp_path: Path) -> None:
    converted = convert(ToySource(episodes=12), tmp_path / "out", tasks=["pull the square"], storage="png")
    assert (converted.episodes, converted.tasks) == (2, {"pull the square"})
    assert [episode.task for episode in LeRobotDataset(tmp_path / "out").episodes()] == ["pull the square"] * 2
    with pytest.raises(DataError, match=r"toy: no task 'turn'; its tasks .episodes.: 'pull the square' \(2\), 'push"):
        convert(ToySource(episodes=12), tmp_path / "other", tasks=["turn"])


def test_cameras_keep_the_last_word_of_their_name_unless_two_have_it() -> None:
    assert short_names(["observation/image", "observation.images.wrist", "observation.image", "agentview_rgb"]) == {
        "observation/image": "observation_image",
        "observation.images.wrist": "observation.images.wrist",
        "observation.image": "observation.image",
        "agentview_rgb": "agentview_rgb",
    }
    assert short_names(["observation/image", "observation.images.wrist"]) == {
        "observation/image": "image",
        "observation.images.wrist": "wrist",
    }


class LongSource(ToySource):
    """One episode whose frames, 59 MB, come in pieces."""

    def __init__(self) -> None:
        super().__init__(episodes=0)
        self._episodes = [Episode(0, "wait", np.zeros((300, 2), np.float32), np.zeros((300, 2), np.float32))]

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, 20):
            yield np.zeros((min(20, stop - first), 256, 256, 3), np.uint8)

    def image_size(self, camera: str) -> tuple[int, int]:
        return 256, 256


def test_a_long_episode_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        convert(LongSource(), tmp_path / "out", storage="png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6


@pytest.mark.slow
def test_a_conversion_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """A signal in the middle; what a kill -9 leaves is removed by the next one, as the writer's tests show."""
    program = (
        "import os, signal, sys; from vlatrack.cli.main import main\n"
        "from vlatrack.data.formats.lerobot.writer import LeRobotWriter as Writer; add = Writer.add_episode\n"
        "def strike(*args, **values):\n add(*args, **values); os.kill(os.getpid(), signal.SIGTERM)\n"
        "Writer.add_episode = strike; main()"
    )
    words = ["data", "convert", str(FIXTURES / "libero-hdf5"), "-o", str(tmp_path / "out"), "--storage", "png"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []

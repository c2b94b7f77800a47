"""Writing LeRobot v3.0 datasets that are, table by table, what LeRobot itself writes."""

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.running import RunningStatistics
from vlatrack.data.formats.lerobot.tables import describe_values
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.video import VideoWriter
from vlatrack.errors import DataError

WRITTEN_BY_LEROBOT = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
CAMERA = "observation.images.corner2"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"


def new_writer(path: Path, **changes: Any) -> LeRobotWriter:
    settings: dict[str, Any] = {
        "fps": 80,
        "robot_type": "sawyer",
        "cameras": {"corner2": (128, 128)},
        "action_names": ("dx", "dy", "dz", "gripper"),
        "state_names": ("x", "y", "z", "gripper"),
    }
    return LeRobotWriter(path, **settings | changes)


def moving_square(steps: int, size: int = 32) -> np.ndarray:
    frames = np.full((steps, size, size, 3), 90, dtype=np.uint8)
    for step in range(steps):
        frames[step, 8:16, step : step + 8] = (200, 40, 40)
    return frames


def add_small(writer: LeRobotWriter, *, steps: int = 6, task: str = "push", camera: str = "top") -> Mapping[str, Any]:
    rng = np.random.default_rng(steps)
    content = {
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "states": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "frames": {camera: moving_square(steps)},
    }
    writer.add_episode(task=task, **content)
    return content


def small_writer(path: Path, **changes: Any) -> LeRobotWriter:
    small = {"cameras": {"top": (32, 32)}, "action_names": ("a", "b"), "state_names": ("x", "y", "z"), "fps": 10}
    return new_writer(path, **small | changes)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that LeRobot wrote, read and written by us."""
    path = tmp_path_factory.mktemp("writer") / "ours"
    source = LeRobotDataset(WRITTEN_BY_LEROBOT)
    with new_writer(path) as writer:
        for episode in source.episodes():
            frames = {"corner2": source.frames(episode, CAMERA)}
            writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
    return path


@pytest.mark.parametrize("name", [DATA, EPISODES, TASKS])
def test_tables_have_the_columns_and_types_of_lerobots(rewritten: Path, name: str) -> None:
    ours, theirs = pq.read_schema(rewritten / name), pq.read_schema(WRITTEN_BY_LEROBOT / name)
    assert ours.names == theirs.names
    assert ours.types == theirs.types


def test_the_frame_table_equals_lerobots_cell_by_cell(rewritten: Path) -> None:
    ours, theirs = pq.read_table(rewritten / DATA), pq.read_table(WRITTEN_BY_LEROBOT / DATA)
    assert ours.equals(theirs)
    features = [json.loads(table.schema.metadata[b"huggingface"])["info"]["features"] for table in (ours, theirs)]
    assert features[0] == features[1]
    assert list(features[0]) == ours.column_names


def test_the_info_differs_from_lerobots_only_in_the_codec(rewritten: Path) -> None:
    ours, theirs = (json.loads((path / "meta/info.json").read_text()) for path in (rewritten, WRITTEN_BY_LEROBOT))
    codec = ours["features"][CAMERA]["info"]
    assert codec.pop("video.codec") == "h264"
    assert {codec.pop("video.g"), codec.pop("video.crf")} == {2, 25}
    theirs["features"][CAMERA]["info"].pop("video.codec")
    assert ours == theirs


def test_pandas_finds_the_instruction_as_the_index(rewritten: Path) -> None:
    ours, theirs = pq.read_table(rewritten / TASKS), pq.read_table(WRITTEN_BY_LEROBOT / TASKS)
    assert ours.to_pylist() == theirs.to_pylist() == [{"task_index": 0, "__index_level_0__": "open the drawer"}]
    assert json.loads(ours.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(rewritten / TASKS)
    assert frame.loc["open the drawer"].task_index == 0


def test_episode_statistics_agree_with_lerobots(rewritten: Path) -> None:
    ours, theirs = pq.read_table(rewritten / EPISODES), pq.read_table(WRITTEN_BY_LEROBOT / EPISODES)
    for name in ours.column_names:
        mine, other = (np.array(table[name].to_pylist(), dtype=object) for table in (ours, theirs))
        if name.endswith("_timestamp"):
            assert mine.astype(float) == pytest.approx(other.astype(float), abs=1e-9), name
        elif not name.startswith("stats/"):
            assert mine.tolist() == other.tolist(), name
        elif name.startswith(f"stats/{CAMERA}/") and name.endswith(("min", "max", "std")):
            continue  # lossy video has other extremes; LeRobot's std of images is that of a mean
        else:  # LeRobot reads its quantiles off histograms: coarsely, on whole numbers
            tolerance = 1 if "index/q" in name else 0.02
            assert mine.astype(float) == pytest.approx(other.astype(float), abs=tolerance, rel=0.02), name


def test_total_statistics_are_exact(tmp_path: Path) -> None:
    with small_writer(tmp_path / "demos", storage="png") as writer:
        contents = [add_small(writer, steps=steps) for steps in (5, 9)]
    statistics = json.loads((tmp_path / "demos/meta/stats.json").read_text())
    actions = np.concatenate([content["actions"] for content in contents]).astype(float)
    pixels = np.concatenate([content["frames"]["top"] for content in contents]) / 255
    for name, value in (("min", actions.min(0)), ("mean", actions.mean(0)), ("std", actions.std(0))):
        assert statistics["action"][name] == pytest.approx(value)
    assert statistics["action"]["q10"] == pytest.approx(np.quantile(actions, 0.1, axis=0))
    of_pixels = {name: np.ravel(value) for name, value in statistics["observation.images.top"].items()}
    assert of_pixels["mean"] == pytest.approx(pixels.mean((0, 1, 2)))
    assert of_pixels["std"] == pytest.approx(pixels.std((0, 1, 2)))
    assert of_pixels["q99"] == pytest.approx(np.quantile(pixels, 0.99, axis=(0, 1, 2), method="inverted_cdf"))
    assert of_pixels["count"] == 14
    assert statistics["frame_index"]["max"] == [8]


@pytest.mark.parametrize("storage", ["video", "png"])
def test_what_is_written_is_read_again(tmp_path: Path, storage: Literal["video", "png"]) -> None:
    with small_writer(tmp_path / "demos", storage=storage) as writer:
        contents = [
            add_small(writer, steps=5 + number, task=task) for number, task in enumerate(("push", "pull", "push"))
        ]
    dataset = LeRobotDataset(tmp_path / "demos")
    assert (dataset.action_dim, dataset.state_dim, dataset.fps) == (2, 3, 10.0)
    assert [episode.task for episode in dataset.episodes()] == ["push", "pull", "push"]
    for episode, content in zip(dataset.episodes(), contents, strict=True):
        assert np.array_equal(episode.actions, content["actions"])
        assert np.array_equal(episode.states, content["states"])
        difference = dataset.frames(episode, "observation.images.top").astype(int) - content["frames"]["top"]
        assert np.abs(difference).mean() < (5 if storage == "video" else 1e-9)


def test_the_same_demonstrations_give_the_same_fingerprint(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with small_writer(tmp_path / name) as writer:
            add_small(writer)
    assert LeRobotDataset(tmp_path / "one").fingerprint() == LeRobotDataset(tmp_path / "two").fingerprint()


def test_a_dataset_without_a_state_has_none(tmp_path: Path) -> None:
    with small_writer(tmp_path / "demos", state_names=()) as writer:
        writer.add_episode(task="push", actions=np.zeros((4, 2), np.float32), frames={"top": moving_square(4)})
    dataset = LeRobotDataset(tmp_path / "demos", state=None)
    assert [episode.states for episode in dataset.episodes()] == [None]
    with pytest.raises(DataError, match=r"no feature 'observation.state'"):
        LeRobotDataset(tmp_path / "demos")


def test_nothing_appears_before_the_dataset_is_complete(tmp_path: Path) -> None:
    writer = small_writer(tmp_path / "demos")
    add_small(writer)
    assert not (tmp_path / "demos").exists()
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def test_an_interrupted_recording_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with small_writer(tmp_path / "demos") as writer:
            add_small(writer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_replaced_only_when_asked_and_other_folders_never(tmp_path: Path) -> None:
    with small_writer(tmp_path / "demos") as writer:
        add_small(writer, steps=5)
    with pytest.raises(DataError, match=r"is a dataset already.*--overwrite"):
        small_writer(tmp_path / "demos")
    with small_writer(tmp_path / "demos", overwrite=True) as writer:
        add_small(writer, steps=7)
    assert LeRobotDataset(tmp_path / "demos").episodes()[0].length == 7
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("dear reader")
    with pytest.raises(DataError, match="exists and is not a LeRobot dataset"):
        small_writer(tmp_path / "thesis", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos", "thesis"]


@pytest.mark.parametrize("storage", ["video", "png"])
@pytest.mark.parametrize("limit", [50, 2000, 5000])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    tmp_path: Path, storage: Literal["video", "png"], limit: int
) -> None:
    """A limit on the size of files stands in for the disk: some write fails, in an episode or at the end."""

    def record() -> None:
        with small_writer(tmp_path / "demos", storage=storage) as writer:
            add_small(writer, steps=40)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"demos: cannot be written \(File too large\); free space") as told:
            record()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    killed = ".demos.0123abcd"
    (tmp_path / killed / "data").mkdir(parents=True)
    (tmp_path / ".demos.notes").mkdir()
    writer = small_writer(tmp_path / "demos")
    with small_writer(tmp_path / "demos") as other:
        add_small(other, steps=5)
    add_small(writer, steps=7)
    assert not (tmp_path / killed).exists()
    writer.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".demos.notes", "demos"]


def test_videos_of_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    written = set()
    for _ in range(200):  # with x264's macroblock tree, about two of so many differed
        writer = VideoWriter(tmp_path / "video.mp4", fps=10, height=16, width=16)
        writer.add(moving_square(12, size=16))
        writer.close()
        written.add((tmp_path / "video.mp4").read_bytes())
    assert len(written) == 1


def test_frames_in_pieces_give_the_same_dataset(tmp_path: Path) -> None:
    frames = moving_square(20)
    vectors = {"actions": np.zeros((20, 2), np.float32), "states": np.zeros((20, 3), np.float32)}
    for storage in ("video", "png"):
        for name, given in (("whole", frames), ("pieces", iter([frames[:7], frames[7:]]))):
            with small_writer(tmp_path / storage / name, storage=storage) as writer:
                writer.add_episode(task="push", frames={"top": given}, **vectors)
        whole, in_pieces = (LeRobotDataset(tmp_path / storage / name) for name in ("whole", "pieces"))
        assert whole.fingerprint() == in_pieces.fingerprint()


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([moving_square(3)], "observation.images.top has 3 frames, not 4"),
        ([moving_square(4, size=64)], r"frames of uint8 \(64, 64, 3\), the dataset expects uint8 \(32, 32, 3\)"),
    ],
)
def test_pieces_that_do_not_fit_are_one_line_and_leave_nothing(
    tmp_path: Path, pieces: list[np.ndarray], message: str
) -> None:
    def write() -> None:
        with small_writer(tmp_path / "demos") as writer:
            vectors = {"actions": np.zeros((4, 2), np.float32), "states": np.zeros((4, 3), np.float32)}
            writer.add_episode(task="push", frames={"top": iter(pieces)}, **vectors)

    with pytest.raises(DataError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_many_rows_need_few_of_them_in_memory() -> None:
    rng = np.random.default_rng(0)
    growing = rng.normal(size=(50, 400, 2)) * (1, 1e3) * np.linspace(1, 10, 50)[:, None, None]
    episodes = [np.insert(episode, 2, 7, axis=1).astype(np.float32) for episode in growing]  # and one that is constant
    few, all_rows = RunningStatistics(exact_rows=1000), np.concatenate(episodes)
    for episode in episodes:
        few.add(episode)
    found, exact = few.statistics(), describe_values(all_rows)
    assert found.count == exact.count == 20_000
    for name in ("min", "max"):
        assert np.array_equal(found.values[name], exact.values[name])
    for name in ("mean", "std"):
        assert found.values[name] == pytest.approx(exact.values[name], rel=1e-9)
    span = np.ptp(all_rows, axis=0)
    for name in ("q01", "q10", "q50", "q90", "q99"):
        assert (np.abs(found.values[name] - exact.values[name]) <= span / 2000).all(), name
    assert sum(len(held) for held in few._held) == 0


def test_statistics_of_whole_numbers_stay_whole() -> None:
    running = RunningStatistics(exact_rows=10)
    for start in range(0, 1000, 100):
        running.add(np.arange(start, start + 100).reshape(-1, 1))
    lists = running.statistics().as_lists()
    assert (lists["min"], lists["max"], lists["count"]) == ([0], [999], [1000])
    assert lists["q50"] == pytest.approx([499.5], abs=1)


def test_an_empty_dataset_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episode was added"):
        small_writer(tmp_path / "demos").finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((4, 3), np.float32)}, r"action has shape \(4, 3\), the dataset expects \(4, 2\)"),
        ({"states": None}, r"observation.state has shape None, the dataset expects \(4, 3\)"),
        ({"states": np.full((4, 3), np.nan, np.float32)}, "observation.state has numbers that are not finite"),
        ({"frames": {"top": moving_square(5)}}, r"observation.images.top has shape \(5, 32, 32, 3\)"),
        ({"frames": {}}, "observation.images.top has shape None"),
        ({"frames": {"top": np.zeros((4, 32, 32, 3))}}, "observation.images.top is float64"),
        ({"actions": np.zeros((0, 2), np.float32)}, "it has no steps"),
    ],
)
def test_an_episode_that_does_not_fit_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {
        "task": "push",
        "actions": np.zeros((4, 2), np.float32),
        "states": np.zeros((4, 3), np.float32),
        "frames": {"top": moving_square(4)},
    }
    writer = small_writer(tmp_path / "demos")
    with pytest.raises(DataError, match=message):
        writer.add_episode(**fitting | change)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_odd_size_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="33 x 32 pixels; a video needs even sizes"):
        small_writer(tmp_path / "demos", cameras={"top": (33, 32)})
    assert list(tmp_path.iterdir()) == []


def test_embedded_images_that_are_damaged_or_differ_are_reported(tmp_path: Path) -> None:
    camera = "observation.images.top"
    with small_writer(tmp_path / "demos", storage="png") as writer:
        add_small(writer, steps=4)
    path = tmp_path / "demos" / DATA
    table = pq.read_table(path)
    cells = table[camera].to_pylist()

    def read_with(first: dict[str, Any]) -> Episode:
        column = pa.array([first, *cells[1:]], type=table.schema.field(camera).type)
        pq.write_table(table.set_column(0, camera, column), path)
        dataset = LeRobotDataset(tmp_path / "demos")
        dataset.frames(dataset.episodes()[0], camera)
        return dataset.episodes()[0]

    assert read_with(cells[0]).length == 4
    with pytest.raises(DataError, match="frame 0: damaged image"):
        read_with({"bytes": cells[0]["bytes"][:40], "path": "a.png"})
    with pytest.raises(DataError, match="frame 0: the image is not embedded"):
        read_with({"bytes": None, "path": "/etc/passwd"})

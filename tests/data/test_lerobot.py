"""Reading LeRobot v3.0 datasets, whole and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_source import ToySource

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.selection import select_episodes
from vlatrack.data.store.episode_table import EpisodeTable
from vlatrack.errors import DataError

WRITTEN_BY_LEROBOT = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
SHIPPED = Path(__file__).parents[2] / "experiments" / "data" / "metaworld-mini"
CAMERA = "observation.images.corner2"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A dataset that LeRobot wrote, to be damaged."""
    return Path(shutil.copytree(WRITTEN_BY_LEROBOT, tmp_path / "demos"))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read_everything(root: Path) -> None:
    dataset = LeRobotDataset(root)
    for episode in dataset.episodes():
        dataset.frames(episode, CAMERA)


def test_a_dataset_that_lerobot_wrote_is_read() -> None:
    dataset = LeRobotDataset(WRITTEN_BY_LEROBOT)
    assert dataset.cameras == (CAMERA,)
    assert (dataset.action_dim, dataset.state_dim, dataset.fps) == (4, 4, 80.0)
    episodes = dataset.episodes()
    assert [(e.index, e.task, e.length) for e in episodes] == [(i, "open the drawer", 97 - i) for i in range(3)]
    table = pq.read_table(WRITTEN_BY_LEROBOT / DATA)
    assert np.array_equal(np.concatenate([e.actions for e in episodes]), np.array(table["action"].to_pylist(), "f4"))
    states = np.array(table["observation.state"].to_pylist(), "f4")
    assert np.array_equal(episodes[1].states, states[97:193])


def test_each_episode_gets_its_own_stretch_of_a_shared_video() -> None:
    dataset = LeRobotDataset(WRITTEN_BY_LEROBOT)
    clips = [dataset.frames(episode, CAMERA) for episode in dataset.episodes()]
    assert [clip.shape for clip in clips] == [(97 - i, 128, 128, 3) for i in range(3)]
    statistics = pq.read_table(WRITTEN_BY_LEROBOT / EPISODES)[f"stats/{CAMERA}/mean"].to_pylist()
    for clip, mean in zip(clips, statistics, strict=True):  # LeRobot took them before it encoded
        assert clip.mean(axis=(0, 1, 2)) / 255 == pytest.approx(np.ravel(mean), abs=0.01)
    starts, ends = [clip[0].astype(int) for clip in clips], [clip[-1].astype(int) for clip in clips]
    assert np.abs(starts[0] - starts[1]).mean() < np.abs(ends[0] - starts[1]).mean()


def test_the_shipped_dataset_is_whole() -> None:
    dataset = LeRobotDataset(SHIPPED)
    held_out = ("close the window", "close the door")
    table = EpisodeTable.of(dataset.episodes(), name=dataset.name)
    training = select_episodes(table, exclude_tasks=held_out)
    assert {e.task for e in training} >= {"open the window", "press the button from above"}
    assert len(training) == 80
    assert len(select_episodes(table, tasks=held_out)) == 10
    assert all(np.abs(e.actions).max() <= 1 for e in dataset.episodes())
    last = dataset.episodes()[-1]
    assert dataset.frames(last, "observation.images.corner4").shape == (last.length, 128, 128, 3)
    size = sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file())
    assert size < 8e6


def test_a_dataset_can_be_used_without_its_state() -> None:
    dataset = LeRobotDataset(WRITTEN_BY_LEROBOT, state=None)
    assert dataset.state_dim == 0
    assert dataset.episodes()[0].states is None


def test_the_fingerprint_follows_the_content_and_not_the_place(copy: Path) -> None:
    fingerprint = LeRobotDataset(WRITTEN_BY_LEROBOT).fingerprint()
    assert len(fingerprint) == 64
    (copy / "README.md").write_text("about these demonstrations")
    assert LeRobotDataset(copy).fingerprint() == fingerprint
    content = bytearray((copy / VIDEO).read_bytes())
    content[-1] ^= 1
    (copy / VIDEO).write_bytes(content)
    assert LeRobotDataset(copy).fingerprint() != fingerprint


def test_several_data_and_video_files_are_read(tmp_path: Path) -> None:
    source = LeRobotDataset(WRITTEN_BY_LEROBOT)
    with LeRobotWriter(
        tmp_path / "many",
        fps=80,
        robot_type="sawyer",
        cameras={"corner2": (128, 128)},
        action_names="xyzg",
        state_names="xyzg",
        data_file_megabytes=0.001,
        video_file_megabytes=0.001,
    ) as writer:
        for episode in source.episodes():
            frames = {"corner2": source.frames(episode, CAMERA)}
            writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
    assert len(list((tmp_path / "many").rglob("videos/**/*.mp4"))) == 3
    assert len(list((tmp_path / "many").rglob("data/**/*.parquet"))) == 3
    many = LeRobotDataset(tmp_path / "many")
    for ours, theirs in zip(many.episodes(), source.episodes(), strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
        difference = many.frames(ours, CAMERA).astype(int) - source.frames(theirs, CAMERA)
        assert np.abs(difference).mean() < 4  # both are compressed


def test_frames_of_any_episode_may_be_read_while_episodes_are_streamed(tmp_path: Path) -> None:
    source = ToySource(episodes=6)
    with LeRobotWriter(
        tmp_path / "demos",
        fps=10,
        robot_type="square",
        cameras={"front": (32, 32)},
        action_names="xy",
        state_names="xy",
        storage="png",
        data_file_megabytes=0.004,
    ) as writer:
        for episode in source.episodes():
            frames = {"front": source.frames(episode, "front")}
            writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
    assert 1 < len(list((tmp_path / "demos/data").rglob("*.parquet"))) < 6
    dataset, bad = LeRobotDataset(tmp_path / "demos"), []
    last = dataset.episodes()[-1]
    for episode, expected in zip(
        dataset.readable_episodes(lambda *told: bad.append(told)), source.episodes(), strict=True
    ):
        assert np.array_equal(episode.actions, expected.actions)
        for of in (episode, last):
            frames = dataset.frames(of, "observation.images.front")
            assert np.array_equal(frames, source.frames(source.episodes()[of.index], "front"))
    assert bad == []


def test_a_missing_folder_or_info_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        LeRobotDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no meta/info.json in it"):
        LeRobotDataset(tmp_path)


def test_an_older_layout_is_told_how_to_convert(copy: Path) -> None:
    edit_json(copy / "meta/info.json", lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(
        DataError, match=r"'v1.6', vlatrack reads v2.0, v2.1 and v3.0; convert .* LeRobot's own scripts"
    ):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(fps=0), "fps: Input should be greater than 0"),
        (lambda info: info.pop("features"), "features: Field required"),
        (lambda info: info["features"].update(action={"dtype": "float32"}), r"features.action.shape: Field required"),
        (lambda info: info["features"]["action"].update(dtype="string"), r"'action' is string \[4\], not a vector"),
        (lambda info: info["features"].pop("action"), r"no feature 'action'.*observation.state"),
    ],
)
def test_a_wrong_info_is_one_line(copy: Path, change: Callable[[dict], object], message: str) -> None:
    edit_json(copy / "meta/info.json", change)
    with pytest.raises(DataError, match=message) as caught:
        LeRobotDataset(copy)
    assert "\n" not in str(caught.value)


def test_the_size_of_images_is_that_of_the_metadata(copy: Path) -> None:
    dataset = LeRobotDataset(copy)
    size = dataset.frames(dataset.episodes()[0], CAMERA).shape[1:3]
    assert dataset.image_size(CAMERA) == size
    for shape, found in (([3, 4, 5], (4, 5)), ([4, 5, 3], (4, 5)), ([4, 5], None), ([4, 5, 6], None)):
        edit_json(copy / "meta/info.json", lambda info, shape=shape: info["features"][CAMERA].update(shape=shape))
        if found is not None:
            assert LeRobotDataset(copy).image_size(CAMERA) == found
        else:
            with pytest.raises(DataError, match=r"info.json has \[4, 5.* as shape of observation"):
                LeRobotDataset(copy).image_size(CAMERA)


def test_a_damaged_info_is_named(copy: Path) -> None:
    (copy / "meta/info.json").write_text('{"fps": ')
    with pytest.raises(DataError, match=r"info.json: damaged JSON"):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    "template",
    [
        "../outside-{chunk_index:03d}.parquet",
        "/etc/{file_index}.parquet",
        "data/{chunk_index.__class__}/{file_index}.parquet",
        "data/{chunk_index:0999999999d}.parquet",
        "data/{secret}.parquet",
        "data/{chunk_index",
    ],
)
def test_path_templates_stay_in_the_folder_and_simple(copy: Path, template: str) -> None:
    edit_json(copy / "meta/info.json", lambda info: info.update(data_path=template))
    with pytest.raises(DataError, match=r"leaves its folder|is not understood") as caught:
        read_everything(copy)
    assert "\n" not in str(caught.value)


def test_a_camera_whose_name_climbs_out_of_the_folder_is_refused(copy: Path) -> None:
    climbing = "../../../elsewhere"
    edit_json(copy / "meta/info.json", lambda info: info["features"].update({climbing: info["features"].pop(CAMERA)}))
    table = pq.read_table(copy / EPISODES)
    pq.write_table(
        table.rename_columns([name.replace(CAMERA, climbing) for name in table.column_names]), copy / EPISODES
    )
    dataset = LeRobotDataset(copy)
    with pytest.raises(DataError, match="leaves its folder"):
        dataset.frames(dataset.episodes()[0], climbing)


def test_an_unknown_camera_is_told_which_there_are() -> None:
    dataset = LeRobotDataset(WRITTEN_BY_LEROBOT)
    with pytest.raises(DataError, match=f"no camera 'wrist'; its cameras: {CAMERA}"):
        dataset.frames(dataset.episodes()[0], "wrist")


@pytest.mark.parametrize("name", [DATA, EPISODES, VIDEO])
@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_damaged_files_are_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not what it should be")
    with pytest.raises(DataError) as caught:
        read_everything(copy)
    assert Path(name).name in str(caught.value) or "no episode table" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_frame_is_reported_and_not_concealed(copy: Path) -> None:
    content = bytearray((copy / VIDEO).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (copy / VIDEO).write_bytes(content)
    with pytest.raises(DataError, match="restore the file"):
        read_everything(copy)


def test_a_video_that_ends_too_early_is_reported(copy: Path) -> None:
    table = pq.read_table(copy / EPISODES)
    column = f"videos/{CAMERA}/from_timestamp"
    later = pa.array([0.0, 1.2125, 2.5])  # the last episode begins at 2.4125 s
    pq.write_table(table.set_column(table.column_names.index(column), column, later), copy / EPISODES)
    with pytest.raises(DataError, match="88 of 95 frames"):
        read_everything(copy)


def test_an_episode_with_missing_rows_is_reported(copy: Path) -> None:
    table = pq.read_table(copy / DATA)
    pq.write_table(table.slice(0, 280), copy / DATA)
    with pytest.raises(DataError, match=r"episode 2 has 87 rows .* not 95"):
        LeRobotDataset(copy).episodes()


def test_episode_counts_that_disagree_are_reported(copy: Path) -> None:
    edit_json(copy / "meta/info.json", lambda info: info.update(total_episodes=4))
    with pytest.raises(DataError, match=r"3 episodes in the tables, 4 in meta/info\.json"):
        LeRobotDataset(copy).episodes()


def test_actions_that_are_not_finite_are_reported(copy: Path) -> None:
    table = pq.read_table(copy / DATA)
    actions = np.array(table["action"].to_pylist(), "f4")
    actions[100, 2] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 4)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), copy / DATA)
    with pytest.raises(DataError, match="episode 1: action: numbers that are not finite"):
        LeRobotDataset(copy).episodes()


def test_an_episode_with_two_instructions_is_reported(copy: Path) -> None:
    table = pq.read_table(copy / EPISODES)
    tasks = pa.array([["open the drawer"], ["open the drawer", "close it"], ["open the drawer"]])
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", tasks), copy / EPISODES)
    with pytest.raises(DataError, match="episode 1 has 2 instructions"):
        LeRobotDataset(copy).episodes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c", "d"], ("a", "b", "c", "d")),
        ({"motors": ["a", "b", "c", "d"]}, ("a", "b", "c", "d")),
        (None, ()),
        ({"a": 0, "b": 1}, ()),
        ("abcd", ()),
    ],
)
def test_the_names_of_actions_are_read_in_the_forms_in_which_datasets_have_them(copy, names, expected) -> None:
    edit_json(copy / "meta/info.json", lambda info: info["features"]["action"].update(names=names))
    assert LeRobotDataset(copy).action_names == expected


def test_a_table_that_holds_many_episodes_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_file = [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path, **options: opened.append(path) or open_file(path, **options))
    assert len(LeRobotDataset(WRITTEN_BY_LEROBOT).episodes()) == 3
    assert sorted(opened) == [WRITTEN_BY_LEROBOT / name for name in (DATA, EPISODES, "meta/tasks.parquet")]

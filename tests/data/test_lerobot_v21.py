"""Reading LeRobot v2.1 datasets, whole and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot_v21 import as_v21, write_lines
from toy_source import ToySource

from vlatrack.data.episodes import FindsMissingFrames, SkipsBadEpisodes, StreamsFrames, episodes_digest
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.writer import LeRobotWriter
from vlatrack.data.formats.opening import open_dataset
from vlatrack.errors import DataError
from vlatrack.testing.dataset_contract import DatasetContract

WRITTEN_BY_LEROBOT = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
CAMERA = "observation.images.corner2"
EPISODES = "meta/episodes.jsonl"


@pytest.fixture(scope="module")
def _converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_v21(WRITTEN_BY_LEROBOT, tmp_path_factory.mktemp("v21") / "demos")


@pytest.fixture
def demos(_converted: Path, tmp_path: Path) -> Path:
    """A dataset of three episodes, each with a video, to be damaged."""
    return Path(shutil.copytree(_converted, tmp_path / "demos"))


class TestV21(DatasetContract):
    @pytest.fixture(autouse=True)
    def _dataset(self, _converted: Path) -> None:
        self.folder = _converted

    def open(self) -> LeRobotDataset:
        return LeRobotDataset(self.folder)


def rows_of(demos: Path) -> list[dict]:
    return [json.loads(line) for line in (demos / EPISODES).read_text().splitlines()]


def video_of(demos: Path, episode: int) -> Path:
    return demos / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def test_the_same_episodes_are_read_from_both_layouts(demos: Path) -> None:
    old, new = open_dataset(demos, action="action", state="observation.state"), LeRobotDataset(WRITTEN_BY_LEROBOT)
    assert episodes_digest(old.episodes()) == episodes_digest(new.episodes())
    assert (old.cameras, old.fps, old.action_dim, old.state_dim) == (new.cameras, 80.0, 4, 4)
    for episode in old.episodes():
        difference = old.frames(episode, CAMERA).astype(int) - new.frames(episode, CAMERA)
        assert np.abs(difference).mean() < 4  # both are compressed
    assert isinstance(old, SkipsBadEpisodes)
    assert isinstance(old, StreamsFrames)
    assert isinstance(old, FindsMissingFrames)


def test_embedded_images_are_the_same_to_the_bit_and_chunks_and_templates_are_followed(tmp_path: Path) -> None:
    source = ToySource(episodes=5)
    with LeRobotWriter(
        tmp_path / "new",
        fps=10,
        robot_type="square",
        cameras={"front": (32, 32)},
        action_names="xy",
        state_names="xy",
        storage="png",
    ) as writer:
        for episode in source.episodes():
            frames = {"front": source.frames(episode, "front")}
            writer.add_episode(task=episode.task, actions=episode.actions, states=episode.states, frames=frames)
    places = "{episode_index}/of/{episode_chunk:02d}.parquet"
    old = LeRobotDataset(as_v21(tmp_path / "new", tmp_path / "old", chunk_size=2, data_path=places))
    assert (tmp_path / "old/4/of/02.parquet").is_file()
    assert episodes_digest(old.episodes()) == episodes_digest(LeRobotDataset(tmp_path / "new").episodes())
    for ours, theirs in zip(old.episodes(), source.episodes(), strict=True):
        assert np.array_equal(old.frames(ours, "observation.images.front"), source.frames(theirs, "front"))
        cut = np.concatenate(list(old.stream_frames(ours, "observation.images.front", 3, 5)))
        assert np.array_equal(cut, source.frames(theirs, "front")[3:5])


def test_v20_which_has_other_statistics_is_read_as_well(demos: Path) -> None:
    info = json.loads((demos / "meta/info.json").read_text())
    (demos / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    assert len(LeRobotDataset(demos).episodes()) == 3


def test_the_fingerprint_covers_the_metadata_of_the_episodes(demos: Path) -> None:
    before = LeRobotDataset(demos).fingerprint()
    write_lines(demos / EPISODES, [row | {"tasks": ["close the drawer"]} for row in rows_of(demos)])
    assert LeRobotDataset(demos).fingerprint() != before


def test_a_missing_video_is_known_beforehand_and_costs_its_episode_alone(demos: Path) -> None:
    video_of(demos, 1).unlink()
    dataset = LeRobotDataset(demos)
    problems = {episode.index: dataset.problem_of(episode, dataset.cameras) for episode in dataset.episodes()}
    assert {index: bool(problem) for index, problem in problems.items()} == {0: False, 1: True, 2: False}
    assert "episode_000001.mp4: no such video of episode 1; restore it" in problems[1]
    with pytest.raises(DataError, match="no such video of episode 1"):
        dataset.frames(dataset.episodes()[1], CAMERA)
    assert len(dataset.frames(dataset.episodes()[2], CAMERA)) == 95
    assert dataset.problem_of(dataset.episodes()[1], []) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "video"),
        (lambda _: b"", "video"),
        (lambda _: b"something else", "video"),
    ],
)
def test_a_cut_video_is_known_beforehand(demos: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = video_of(demos, 2)
    path.write_bytes(damage(path.read_bytes()))
    dataset = LeRobotDataset(demos)
    problem = dataset.problem_of(dataset.episodes()[2], [CAMERA])
    assert problem is not None
    assert str(path) in problem
    assert message in problem
    with pytest.raises(DataError, match=r"episode_000002\.mp4"):
        dataset.frames(dataset.episodes()[2], CAMERA)


def test_a_video_that_is_too_short_is_known_beforehand(demos: Path) -> None:
    shutil.copy(video_of(demos, 2), video_of(demos, 0))  # 95 frames, not 97
    dataset = LeRobotDataset(demos)
    problem = dataset.problem_of(dataset.episodes()[0], [CAMERA])
    assert problem is not None
    assert "no frame after" in problem
    with pytest.raises(DataError, match="95 of 97 frames"):
        dataset.frames(dataset.episodes()[0], CAMERA)


def test_what_cannot_be_read_is_told_and_the_others_are_read(demos: Path) -> None:
    (demos / "data/chunk-000/episode_000000.parquet").unlink()
    write_lines(
        demos / EPISODES, [row | ({"tasks": None} if row["episode_index"] == 2 else {}) for row in rows_of(demos)]
    )
    told: dict[int, str] = {}
    read = list(LeRobotDataset(demos).readable_episodes(lambda index, problem: told.update({index: str(problem)})))
    assert [episode.index for episode in read] == [1]
    assert "episode_000000.parquet: no such file" in told[0]
    assert "episode 2 has 0 instructions" in told[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: damaged JSON"),
        ('"text"', r"line 2: episode: Input should be"),
        ('{"episode_index": "one", "tasks": ["x"], "length": 3}', "line 2: episode_index: Input should be"),
        ('{"episode_index": 1.5, "tasks": ["x"], "length": 3}', "line 2: episode_index: Input should be"),
        ('{"episode_index": 1, "tasks": ["x"]}', "line 2: length: Field required"),
        ('{"episode_index": 0, "tasks": ["x"], "length": 3}', "episode 0 is in the tables twice"),
        ("", "2 episodes in the tables, 3 in meta/info.json"),
        ("[" * 100_000, "line 2: damaged JSON"),
    ],
)
def test_wrong_lines_of_the_metadata_are_named(demos: Path, line: str, message: str) -> None:
    lines = (demos / EPISODES).read_text().splitlines()
    (demos / EPISODES).write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(DataError, match=message) as caught:
        LeRobotDataset(demos).episodes()
    assert "\n" not in str(caught.value)


def test_metadata_that_are_no_text_or_not_there_are_named(demos: Path) -> None:
    (demos / EPISODES).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"episodes\.jsonl: cannot be read \(it is no text\)"):
        LeRobotDataset(demos).episodes()
    (demos / EPISODES).unlink()
    with pytest.raises(DataError, match=r"episodes\.jsonl: cannot be read \(No such file"):
        LeRobotDataset(demos).episodes()


def test_the_templates_of_the_other_layout_are_refused(demos: Path) -> None:
    info = json.loads((demos / "meta/info.json").read_text())
    (demos / "meta/info.json").write_text(json.dumps(info | {"data_path": "data/{chunk_index}.parquet"}))
    with pytest.raises(DataError, match=r"not understood; it can have \{episode_chunk\}, \{episode_index\}"):
        LeRobotDataset(demos).episodes()


def test_names_of_actions_in_a_list_of_their_own_are_read(demos: Path) -> None:
    info = json.loads((demos / "meta/info.json").read_text())
    info["features"]["action"]["names"] = [["a", "b", "c", "d"]]
    (demos / "meta/info.json").write_text(json.dumps(info))
    assert LeRobotDataset(demos).action_names == ("a", "b", "c", "d")

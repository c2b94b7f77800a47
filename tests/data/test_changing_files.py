"""A dataset of many files that changes while it is read: what is looked at before a shard is kept, and what is told."""

import shutil
from pathlib import Path

import pytest
from lerobot_v21 import as_v21

from vlatrack.builders.data import open_dataset_of
from vlatrack.data import digests
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.errors import DataError
from vlatrack.spec.data import LeRobotSource

FIXTURE = Path(__file__).parent / "fixtures" / "lerobot-v3-video"


@pytest.fixture(params=["as it is", "mapped"])
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StoredDataset:
    """With a table and a video for each of three episodes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_UNTIL_SETTLED_NS", -1)
    root = as_v21(FIXTURE, tmp_path / "demos")
    cameras = {"observation.images.corner2": "front"} if request.param == "mapped" else {}
    return open_dataset_of(LeRobotSource(path=str(root), cameras=cameras), TokenStore(tmp_path / "store"))


def test_only_the_files_of_the_episodes_are_looked_at(dataset: StoredDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, stamp_of = list[str](), digests._stamp_of
    monkeypatch.setattr(digests, "_stamp_of", lambda file: looked_at.append(file.name) or stamp_of(file))
    monkeypatch.setattr(digests, "_sha256", lambda file: pytest.fail(f"{file} is hashed again"))
    dataset.check_unchanged(EpisodeList(dataset.table, [1]))
    assert looked_at == ["episode_000001.parquet", "episode_000001.mp4"]


@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_a_file_of_an_episode_that_is_another_is_told_by_its_name(dataset: StoredDataset, how: str) -> None:
    (video,) = Path(dataset.source.name).rglob("episode_000001.mp4")
    if how == "gone":
        video.unlink()
    else:
        shutil.copy(video.with_name("episode_000002.mp4"), video)
    dataset.check_unchanged(EpisodeList(dataset.table, [0, 2]))
    for episodes in (EpisodeList(dataset.table, [1]), None):
        with pytest.raises(
            DataError, match=r"changed while it was read \(videos/.+/episode_000001\.mp4\); start again"
        ):
            dataset.check_unchanged(episodes)

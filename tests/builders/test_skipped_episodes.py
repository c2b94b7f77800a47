"""Episodes that `skip_bad` leaves out, and who is told."""

from pathlib import Path

import pytest
from lerobot_v21 import as_v21
from program import TOY

from vlatrack.builders.data import Split, build_norm_stats, data_warnings, open_splits
from vlatrack.data.store.token_store import TokenStore
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_spec

CAMERA = "observation.images.corner2"


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Three episodes, of which the second has lost its video."""
    demos = as_v21(Path(__file__).parents[1] / "data" / "fixtures" / "lerobot-v3-video", tmp_path / "demos")
    (demos / "videos" / "chunk-000" / CAMERA / "episode_000001.mp4").unlink()
    return demos


def opened(demos: Path, *, mapping: str = "", camera: str = CAMERA, skip_bad: bool) -> tuple[ExperimentSpec, Split]:
    source = f"{{kind: lerobot, path: {demos}, skip_bad: {str(skip_bad).lower()}{mapping}}}"
    words = [f"data.train={source}", "data.val_ind=null", "data.val_ood=null", f"data.cameras=[{camera}]"]
    words += ["action_head.action_dim=4", "tokenizer.statistics={method: minmax, action_as_is: [3], state_as_is: [3]}"]
    spec = load_spec(TOY, words)
    return spec, open_splits(spec, TokenStore(demos.parent / "store"))["train"]


@pytest.mark.parametrize(("mapping", "camera"), [("", CAMERA), (f", cameras: {{{CAMERA}: front}}", "front")])
def test_an_episode_without_its_video_is_left_out_and_named(demos: Path, mapping: str, camera: str) -> None:
    spec, train = opened(demos, mapping=mapping, camera=camera, skip_bad=True)
    assert [episode.index for episode in train.episodes] == [0, 2]
    told, *_ = data_warnings(spec, {"train": train}, build_norm_stats(spec, train))
    assert told.startswith("data.train: skip_bad leaves out 1 episode of 3 (1); the first: ")
    assert "episode_000001.mp4: no such video of episode 1" in told


def test_without_skip_bad_all_episodes_stay_and_nothing_is_looked_for(demos: Path) -> None:
    _, train = opened(demos, skip_bad=False)
    assert [episode.index for episode in train.episodes] == [0, 1, 2]

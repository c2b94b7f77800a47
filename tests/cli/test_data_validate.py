"""`vlatrack data validate`, in this process."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lerobot_damage import small_dataset
from lerobot_v21 import as_v21
from typer.testing import CliRunner, Result

from vlatrack.cli.data import app
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.errors import DataError, SpecError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "data" / "fixtures"
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, words)], env={"COLUMNS": "200"}, catch_exceptions=False)


def test_the_quickstart_is_in_order() -> None:
    result = run(QUICKSTART)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "data.train: 72 episodes, 5,408 steps, 4 tasks" in lines
    assert lines[-1] == f"{QUICKSTART}: in order: no error, no warning"
    assert any(line.startswith("what the tokens cost") for line in lines)


def test_a_leak_is_an_error_and_the_exit_code_says_so() -> None:
    result = run(QUICKSTART, "data.train.part=all", "action_head.time_horizon=60")
    assert result.exit_code == 1
    assert "8 of 8 episodes also in data.train" in result.stdout
    assert "2 episodes of 8 shorter than 60 steps" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("NOT in order: 1 error, 2 warnings")


def test_json_has_findings_statistics_and_costs() -> None:
    result = run(QUICKSTART, "data.train.part=all", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["verdict"].endswith("NOT in order: 1 error, no warning")
    assert {key: told["findings"][0][key] for key in ("severity", "check", "count")} == {
        "severity": "error",
        "check": "overlap",
        "count": 8,
    }
    train = told["looked_at"]["data.train"]
    assert (train["episodes"], train["actions"][3]["min"], train["actions"][3]["count"]) == (80, -1.0, train["steps"])
    assert set(train["states"][0]["quantiles"]) == {"0.01", "0.1", "0.5", "0.9", "0.99"}
    assert 0 < told["costs"]["actions"][0]["floor"] < 0.01


def test_all_frames_of_a_folder_are_decoded_on_demand() -> None:
    result = run(FIXTURES / "libero-hdf5", "--frames")
    assert result.exit_code == 0
    assert "action 3 (rotation x)" in result.stdout
    assert "{method: minmax, action_as_is: [3, 4, 5]}" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("in order: no error, 3 warnings")
    assert "13/13" in result.stderr


def test_bad_episodes_of_an_experiment_are_listed(monkeypatch, tmp_path: Path) -> None:
    class Damaged(LeRobotDataset):
        def readable_episodes(self, on_bad):
            for episode in super().readable_episodes(on_bad):
                if episode.index == 7:
                    on_bad(7, DataError("file-000.parquet: episode 7: damaged; restore the file"))
                else:
                    yield episode

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # of another test, which has read the episodes undamaged
    for place in ("dataset", "places"):
        monkeypatch.setattr(f"vlatrack.data.formats.lerobot.{place}.LeRobotDataset", Damaged)
    result = run(QUICKSTART, "--skip-bad")
    assert result.exit_code == 1
    assert "experiments/data/metaworld-mini, episode 7" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("NOT in order: 1 error, no warning")
    result = run(ROOT / "experiments" / "data" / "metaworld-mini", "--skip-bad")
    assert "89 episodes" in result.stdout
    assert "episode 7: damaged" in result.stdout


def test_frames_that_are_missing_are_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    shutil.copytree(FIXTURES / "lerobot-v3-video", folder)
    for video in folder.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:3000])
    result = run(folder, "--frames")
    assert result.exit_code == 1
    assert result.stdout.count("error    frames") == 3
    assert "restore the file" in result.stdout
    assert "NOT in order: 3 errors" in result.stdout.splitlines()[-1]


def test_a_video_of_a_later_episode_that_is_not_there_is_missed_without_decoding_others(tmp_path: Path) -> None:
    root = as_v21(small_dataset(tmp_path / "new"), tmp_path / "old")
    (video,) = root.rglob("episode_000002.mp4")
    video.unlink()
    found = CliRunner().invoke(app, ["validate", str(root), "--json"])
    assert found.exit_code == 1, found.output
    (error,) = [finding for finding in json.loads(found.stdout)["findings"] if finding["check"] == "frames"]
    assert error["severity"] == "error"
    assert error["where"].endswith("episode 2")
    assert "episode_000002.mp4: no such video of episode 2" in error["message"]


def test_data_that_cannot_be_used_is_one_line_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="KEY=VALUE changes an experiment's YAML"):
        run(FIXTURES / "libero-hdf5", "data.train.part=all")
    folder = tmp_path / "demos"
    shutil.copytree(FIXTURES / "lerobot-v3-video", folder)
    (table,) = folder.glob("data/**/*.parquet")
    pq.write_table(pq.read_table(table).slice(0, 100), table)
    with pytest.raises(DataError, match=r"episode 1 has .* rows"):
        run(folder)


def test_finished_token_rows_have_nothing_to_look_at(tmp_path: Path) -> None:
    ranges = "{action_low: [-1, -1, -1, -1], action_high: [1, 1, 1, 1]}"
    words = [f"data.train={{kind: rynnvla_records, path: {tmp_path}/rows.yaml}}", f"tokenizer.statistics={ranges}"]
    words += ["data.use_state=false", "tokenizer.checkpoint=chameleon"]
    for options in ([], ["--skip-bad"]):
        with pytest.raises(SpecError, match="finished token rows, which have no episodes to look at; a run compares"):
            run(QUICKSTART, *words, *options)

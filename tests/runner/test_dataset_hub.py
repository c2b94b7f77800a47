"""Datasets go to the Hugging Face hub and come from there, here to and from a double of it on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_hub import dataset_hub
from hub_double import TOKEN, HubDouble
from program import ENVIRONMENT

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.errors import DataError
from vlatrack.runner.dataset_hub import dataset_card

EACH = """
import json, sys
from typer.testing import CliRunner
from vlatrack.cli.data import app
for words in json.loads(sys.argv[1]):
    print(CliRunner().invoke(app, words).exception)
"""
FIXTURE = Path(__file__).parents[1] / "data" / "fixtures" / "lerobot-v3-video"


@pytest.fixture
def hub():
    with dataset_hub() as double:
        yield double


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "demos"))
    (folder / "notes.txt").write_text("nobody's business")
    (folder / "README.md").write_text("Recorded on a rainy day.\n")
    return folder


def run(hub: HubDouble, home: Path, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, env=os.environ | ENVIRONMENT | environment, cwd=home, capture_output=True, text=True, timeout=120
    )


def data(hub: HubDouble, home: Path, *words: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "-m", "vlatrack", "data", *map(str, words), token=token)


@pytest.mark.slow
def test_a_dataset_that_was_pushed_is_pulled_at_its_commit(hub: HubDouble, demos: Path, tmp_path: Path) -> None:
    pushed = data(hub, tmp_path, "push", demos, "lab/drawer")
    assert pushed.returncode == 0, pushed.stderr
    commit = hub.sha("lab/drawer")
    assert pushed.stdout == f"pushed 6 files to {hub.url}/lab/drawer (private), commit {commit}\n"
    assert TOKEN not in pushed.stdout + pushed.stderr
    assert hub.private == {"lab/drawer": True}
    assert "notes.txt" not in hub.files["lab/drawer"]
    card = hub.files["lab/drawer"]["README.md"].decode()
    assert "3 episodes, 288 steps at 80 a second" in card
    assert card.endswith("\n\nRecorded on a rainy day.\n")
    fingerprint = LeRobotDataset(demos).fingerprint()
    assert f"`{fingerprint}`" in card

    pulled = data(hub, tmp_path, "pull", f"lab/drawer@{commit}", "-o", "here")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"pulled 7 files of lab/drawer at commit {commit} into here\n"
    assert LeRobotDataset(tmp_path / "here").fingerprint() == fingerprint
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["README.md", "data", "meta", "videos"]
    again = data(hub, tmp_path, "pull", "lab/drawer", "-o", "here")
    assert (again.returncode, again.stderr) == (
        2,
        "error: here: is there already; give another folder (-o), or remove it\n",
    )


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(hub: HubDouble, demos: Path, tmp_path: Path) -> None:
    hub.files["lab/open"], hub.private["lab/open"] = {"../escape.json": b"x"}, False
    told = {
        ("push", str(demos), "lab/open"): "lab/open: is public; make it private there first, or give --public",
        ("pull", "lab/none"): "lab/none: no such dataset at the hub that this login may see (hf auth login)",
        ("pull", "lab/open@v9"): "lab/open@v9: the dataset has no such revision; leave it out for the newest",
        ("pull", "lab/open"): "lab/open: '../escape.json' leaves the dataset's folder; do not trust this dataset",
        ("pull", "nowhere"): "nowhere: no name of the hub; write organisation/name",
    }
    result = run(hub, tmp_path, "-c", EACH, json.dumps(list(told)))
    assert result.stdout.splitlines() == list(told.values()), result.stderr
    refused = data(hub, tmp_path, "push", demos, "lab/other", token="hf_" + "wrong" * 5)
    assert refused.returncode == 2
    assert "lab/other: cannot be pushed" in refused.stderr
    assert "wrong" not in refused.stderr
    assert not (tmp_path / "open").exists()


def test_only_lerobot_datasets_without_secrets_and_links_are_pushed(demos: Path, monkeypatch, tmp_path: Path) -> None:
    from vlatrack.runner.dataset_hub import HubDataset

    monkeypatch.setenv("LAB_TOKEN", "abcdefgh12345678")
    (demos / "README.md").write_text("log in with abcdefgh12345678")
    with pytest.raises(DataError, match=r"README.md: holds the value of LAB_TOKEN, and would be published"):
        dataset_card(demos, {}, name="demos")
    (demos / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert dataset_card(demos, {}, name="demos") == "---\nlicense: mit\n---\nmine\n"
    (tmp_path / "secret.json").write_text("{}")
    (demos / "meta" / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(DataError, match=r"more.json: is a link that leaves the dataset"):
        HubDataset("lab/demos").push(demos, public=False)
    with pytest.raises(DataError, match="this is not a LeRobot dataset"):
        HubDataset("lab/demos").push(tmp_path, public=False)

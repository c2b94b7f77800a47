"""Policies go to the Hugging Face hub and come from there, here to and from a double of it on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_double import TOKEN, HubDouble, hub_double
from program import ENVIRONMENT, TOY

import vlatrack
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.runner.hub import HubPolicy

SHORT = ("train.max_steps=1", "evaluate.open_loop=null", "tracking.system_every_s=null")
LOAD = (
    "import sys, vlatrack; policy = vlatrack.Policy.load(sys.argv[1], device='cpu'); print(policy.name, policy.sha256)"
)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("lab/policy", HubPolicy("lab/policy")),
        ("lab/policy@v1.0", HubPolicy("lab/policy", "v1.0")),
        ("hub:lab/policy@refs/pr/1", HubPolicy("lab/policy", "refs/pr/1")),
        ("policy", None),
        ("runs/a/b", None),
        ("/lab/policy", None),
        ("../policy", None),
        ("tests/runner", None),  # a folder here
        ("hub:tests/runner", HubPolicy("tests/runner")),
    ],
)
def test_a_name_of_the_hub_is_told_from_a_path(place: str, found: HubPolicy | None, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert HubPolicy.named_by(place) == found


@pytest.mark.parametrize("name", ["hub:policy", "hub:a/b/c", "hub:../x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="no name of the hub; write organisation/name"):
        HubPolicy.named_by(name)


def test_code_that_a_stranger_names_is_not_run() -> None:
    spec = vlatrack.load_spec(
        TOY, ["loss.terms=[{kind: custom, target: 'subprocess:Popen', weight: 1.0, options: {args: x}}]"]
    )
    with pytest.raises(CheckpointError, match="names code that would be run here"):
        HubPolicy("lab/policy").refuse_code(spec)
    HubPolicy("lab/policy").refuse_code(vlatrack.load_spec(TOY))


@pytest.fixture
def hub():
    with hub_double() as double:
        yield double


def run_with(hub: HubDouble, home: Path, *command: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(
        words, env=os.environ | ENVIRONMENT | environment, cwd=home, capture_output=True, text=True, timeout=250
    )


@pytest.mark.slow
def test_a_policy_that_was_pushed_is_loaded_by_its_name(hub: HubDouble, tmp_path: Path) -> None:
    run = vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=tmp_path / "runs")
    export = ("-m", "vlatrack", "export")
    pushed = run_with(hub, tmp_path, *export, run.path, "policy", "--push", "lab/toy", "--private")
    assert pushed.returncode == 0, pushed.stderr
    digest = json.loads((tmp_path / "policy" / "files.json").read_text())["policy_sha256"]
    assert pushed.stdout == f"wrote policy: policy {digest[:12]}\npushed {hub.url}/lab/toy\n"
    assert hub.private == {"lab/toy": True}
    assert hub.messages == [f"Policy {digest[:12]}"]
    assert b'Policy.load("lab/toy")' in hub.files["lab/toy"]["README.md"]
    loaded = run_with(hub, tmp_path, "-c", LOAD, "lab/toy")
    assert loaded.stdout.split() == ["hub:lab/toy", digest], loaded.stderr

    hub.private["lab/toy"] = False
    again = run_with(hub, tmp_path, *export, "policy", "--push", "lab/toy", "--private")
    assert (again.returncode, len(hub.messages)) == (2, 1)
    assert "hub:lab/toy: is public; make it private there first" in again.stderr
    assert run_with(hub, tmp_path, *export, "policy", "--push", "lab/toy").returncode == 0
    refused = run_with(hub, tmp_path, *export, "policy", "--push", "lab/toy", token="hf_" + "wrong" * 5)
    assert refused.returncode == 2
    assert "cannot be pushed" in refused.stderr
    assert "Traceback" not in refused.stderr
    checkpoint = next((run.path / "checkpoints").iterdir())
    whole = run_with(hub, tmp_path, *export, checkpoint, "--push", "lab/toy")
    assert "is a checkpoint with its optimiser; give a FOLDER" in whole.stderr

    hub.files["lab/toy"]["policy.json"] += b" "
    altered = run_with(hub, tmp_path, "-c", LOAD, "lab/toy")
    assert "CheckpointError" in altered.stderr
    assert "truncated or altered" in altered.stderr
    hub.files["lab/empty"], hub.private["lab/empty"] = {"README.md": b"x"}, False
    assert "it is no policy that vlatrack has exported" in run_with(hub, tmp_path, "-c", LOAD, "lab/empty").stderr
    assert "no such policy at the hub" in run_with(hub, tmp_path, "-c", LOAD, "lab/none").stderr

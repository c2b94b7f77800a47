"""The workflows of the public CI, against what they call; GitHub itself is not asked."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlatrack

ROOT = Path(__file__).parents[1]
WORKFLOWS = {file.name: file for file in (ROOT / ".github" / "workflows").glob("*.yml")}


def jobs(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return loaded


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in jobs(name).values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_make_target_that_a_workflow_calls_is_there(name: str) -> None:
    called = {target for step in steps(name) for target in re.findall(r"make (?:--silent )?(\w+)", step.get("run", ""))}
    assert called
    for target in called:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_and_no_input_of_a_stranger_gets_into_a_shell(name: str) -> None:
    whole = yaml.safe_load(WORKFLOWS[name].read_text())
    assert whole["permissions"] == {"contents": "read"}
    for job in jobs(name).values():
        assert job["timeout-minutes"] <= 120
    for step in steps(name):
        assert "${{" not in step.get("run", ""), step
        assert re.fullmatch(r"[\w./-]+@(?:v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"] == {"persist-credentials": False}


def test_every_change_is_checked_and_tested_and_the_slow_tests_run_each_night() -> None:
    whole = yaml.safe_load(WORKFLOWS["ci.yml"].read_text())
    events = whole[True]  # YAML 1.1 reads `on` as true
    assert {"push", "pull_request", "schedule"} <= events.keys()
    runs = [step.get("run", "") for step in steps("ci.yml")]
    for target in re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE):
        assert any(f"make {target}" in run for run in runs), f".ci/run makes {target}"
    assert jobs("ci.yml")["slow"]["if"] == "github.event_name != 'pull_request'"


def test_publishing_has_rights_that_building_has_not() -> None:
    publish = jobs("release.yml")["publish"]
    assert publish["permissions"] == {"contents": "write", "id-token": "write"}
    assert publish["environment"] == "release"
    assert "permissions" not in jobs("release.yml")["packages"]
    assert not any("checkout" in step.get("uses", "") for step in publish["steps"]), "no code of the commit runs there"


def test_release_notes_are_those_of_the_version_and_disagreements_are_one_line(tmp_path: Path) -> None:
    for name in (".ci/release_notes.py", "vlatrack/__init__.py", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    version = vlatrack.__version__
    (tmp_path / "CHANGELOG.md").write_text(
        f"## [Unreleased]\n- later\n\n## [{version}] - 2026-12-01\n\n### Added\n- this\n\n## [0.0.1] - 2026-01-01\n"
    )

    def notes(wanted: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, tmp_path / ".ci" / "release_notes.py", wanted]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert notes(version).stdout == "### Added\n- this\n"
    other = notes("9.9.9")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr == f"error: vlatrack/__init__.py has version {version}, not 9.9.9: set it there\n"
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert notes(version).stderr.startswith(f"error: CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")

"""What a run records of a repository: enough to have its files again, and no login."""

import subprocess
from pathlib import Path

import pytest

from vlatrack.runner import git_state as module
from vlatrack.runner.git_state import git_state, tracks


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.py").write_text("layers = 2\n")
    (folder / ".gitignore").write_text("data/\n")
    git(folder, "init", "-b", "wide")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    git(folder, "remote", "add", "origin", "https://me:s3cret@example.org/lab/mine.git")
    return folder


def test_diff_untracked_text_and_address_without_login_are_recorded(repository: Path) -> None:
    (repository / "model.py").write_text("layers = 3\n")
    (repository / "loss.py").write_text("weight = 1\n")
    (repository / "weights.bin").write_bytes(b"\0\1")
    (repository / ".env").write_text("KEY=planted\n")
    (repository / "link.py").symlink_to("/etc/hostname")
    (repository / "data").mkdir()
    (repository / "data" / "ignored.txt").write_text("large")
    (repository / "runs" / "exp").mkdir(parents=True)
    (repository / "runs" / "exp" / "log.txt").write_text("of an earlier run")
    state = git_state(repository, leave_out=repository / "runs")
    assert state is not None
    assert (state.remote, state.branch, state.dirty) == ("https://example.org/lab/mine.git", "wide", True)
    assert state.untracked == {"loss.py": "weight = 1\n"}
    assert state.untracked_left_out == [".env", "link.py", "weights.bin"]
    again = repository.parent / "again"
    git(repository, "worktree", "add", "--detach", str(again), state.commit)
    subprocess.run(["git", "-C", str(again), "apply"], input=state.diff, text=True, check=True)
    assert (again / "model.py").read_text() == "layers = 3\n"


def test_what_is_too_large_is_cut_or_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DIFF", 50)
    monkeypatch.setattr(module, "MAX_UNTRACKED_FILE", 8)
    (repository / "model.py").write_text("layers = 3\n" * 20)
    (repository / "notes.txt").write_text("longer than eight")
    state = git_state(repository)
    assert state is not None
    assert (len(state.diff), state.diff_cut, state.untracked_left_out) == (50, True, ["notes.txt"])


def test_submodules_are_recorded_by_their_commits(repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init")
    git(outer, "submodule", "add", str(repository), "libs/mine")
    git(outer, "commit", "-m", "with a submodule")
    state = git_state(outer)
    assert state is not None
    assert state.submodules == {"libs/mine": git(repository, "rev-parse", "HEAD")}


def test_a_package_in_an_environment_below_a_repository_is_not_of_it(repository: Path) -> None:
    package = repository / "data" / "site-packages" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    assert not tracks(package.parent, package)
    assert tracks(repository, repository / "model.py")


def test_outside_of_a_repository_there_is_no_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

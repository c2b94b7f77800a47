"""The recorded state of a repository in a worktree: its commit, its uncommitted changes, its untracked files."""

import re
import subprocess
from pathlib import Path, PurePosixPath

from vlatrack.errors import RunError
from vlatrack.runner.comparison.recorded import Repository
from vlatrack.runner.git_state import GitState, git_state, run_git
from vlatrack.tracking.privacy import private_directory

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def is_same(recorded: Repository, here: GitState | None) -> bool:
    """Whether the files of the repository are now what they were."""
    return (
        here is not None
        and (here.commit, here.diff) == (recorded.commit, recorded.diff)
        and here.untracked == dict(recorded.untracked)
        and here.submodules == dict(recorded.submodules)
    )


def local_repository(recorded: Repository) -> Path | None:
    """A clone on this machine that has the recorded commit: where it was, or around the working directory."""
    for folder in ([] if recorded.root is None else [Path(recorded.root)]) + [Path.cwd(), Path(__file__).parent]:
        if folder.is_dir() and _has_commit(folder, recorded.commit):
            state = git_state(folder)
            return None if state is None else Path(state.root)
    return None


def check_out(name: str, recorded: Repository, clone: Path | None, folder: Path) -> None:
    """Make a worktree of the clone in the new ``folder``, and bring it into the recorded state.

    Raises:
        RunError: the commit is not known here, its changes were cut or do not apply, or git refuses.
    """
    if _COMMIT.fullmatch(recorded.commit) is None:
        raise RunError(f"{name}: the manifest's commit is none; --here uses the code as it is")
    if clone is None:
        where = f"git clone {recorded.remote}, and call this in it" if recorded.remote else "fetch it into your clone"
        raise RunError(f"{name}: commit {recorded.commit[:12]} is not in a clone here; {where}, or use --here")
    if recorded.diff_cut or "***" in recorded.diff:
        why = (
            "was too long to be recorded" if recorded.diff_cut else "held what looks like a key, which is not recorded"
        )
        raise RunError(f"{name}: what was uncommitted {why}; --here uses the code as it is")
    private_directory(folder.parent)
    _add_worktree(name, clone, folder, recorded.commit)
    for path, commit in recorded.submodules.items():  # an outer one stands before those in it
        target, module = _inside(name, folder, path), clone / path
        if not (module.is_dir() and _has_commit(module, commit)):
            raise RunError(
                f"{name}: commit {commit[:12]} of its submodule {path} is not in {module}; "
                "git submodule update --init gets it, or use --here"
            )
        _add_worktree(name, module, target, commit)
    if recorded.diff:
        _apply(name, recorded.diff, folder)
    for file, text in recorded.untracked.items():
        target = _inside(name, folder, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def remove_checkout(recorded: Repository, clone: Path, folder: Path) -> None:
    """Remove a worktree, whose files are in the clone and the manifest, with those of its submodules."""
    for path in reversed(list(recorded.submodules)):
        run_git(clone / path, "worktree", "remove", "--force", str(folder / path))
    run_git(clone, "worktree", "remove", "--force", str(folder))


def _add_worktree(name: str, clone: Path, folder: Path, commit: str) -> None:
    done = run_git(clone, "worktree", "add", "--detach", str(folder), commit)
    if done is None or done.returncode != 0:
        said = "git is missing" if done is None else done.stderr.strip().splitlines()[-1]
        raise RunError(f"{name}: cannot be checked out ({said}); --here uses the code as it is")


def _inside(name: str, folder: Path, path: str) -> Path:
    """Where a file or submodule that a manifest names lies in a worktree; RunError if that is outside of it."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or parts[:1] == (".git",):
        raise RunError(f"{name}: the manifest names {path!r}, which lies outside; it is not used")
    target = folder.joinpath(*parts)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{name}: {path!r} lies outside by a symbolic link; it is not used")
    return target


def _has_commit(folder: Path, commit: str) -> bool:
    if _COMMIT.fullmatch(commit) is None:
        return False
    done = run_git(folder, "cat-file", "-e", f"{commit}^{{commit}}")
    return done is not None and done.returncode == 0


def _apply(name: str, diff: str, folder: Path) -> None:
    command = ["git", "-C", str(folder), "apply", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, input=diff.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason"])[0]
        raise RunError(f"{name}: the recorded changes do not apply ({said}); --here uses the code as it is")

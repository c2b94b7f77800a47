"""The state of a git repository: enough to have the same files again, without a login in it."""

import os
import re
import shutil
import stat
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_DIFF = 1 << 20
MAX_UNTRACKED_FILE = 64 << 10
MAX_UNTRACKED = 1 << 20
_MAX_NAMED = 100
_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")
_HOLDS_SECRETS = re.compile(
    r"(^|/)\.(env|netrc|pgpass|git-credentials)|(^|/)id_(rsa|dsa|ecdsa|ed25519)|\.(pem|key|p12|pfx)$|secret|credential|passw",
    re.IGNORECASE,
)
"""Names of files that usually hold a key: nothing of them is kept."""


@dataclass(frozen=True)
class GitState:
    """A repository as it was: its commit, and what the working tree has beside it."""

    root: str
    remote: str | None  # without a login
    commit: str
    branch: str | None  # None for a detached HEAD
    dirty: bool  # whether tracked files differ from the commit
    diff: str  # of tracked files against the commit, for `git apply`
    diff_cut: bool  # whether it is longer than MAX_DIFF bytes, and so not whole
    untracked: dict[str, str]  # text of the files that git neither tracks nor ignores, by their path below the root
    untracked_left_out: list[str]  # binary, too large, or named like a file of keys; at most 100 are named
    submodules: dict[str, str]  # commit by path

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str] | None":
    """What a git command in a folder says; None without git. Bytes that are not UTF-8 are replaced."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
    )


def git_state(folder: Path, *, leave_out: Path | None = None) -> GitState | None:
    """The state of the repository that a folder lies in; None outside of one, and before its first commit.

    Args:
        leave_out: a folder of results, of which no untracked file is kept.
    """
    commit = _said(folder, "rev-parse", "HEAD")
    root = _said(folder, "rev-parse", "--show-toplevel")
    if commit is None or root is None:
        return None
    diff = _diff(folder)
    untracked, left_out = _untracked(Path(root), leave_out)
    return GitState(
        root=root,
        remote=_without_login(_said(folder, "remote", "get-url", "origin")),
        commit=commit,
        branch=_said(folder, "symbolic-ref", "--quiet", "--short", "HEAD"),
        dirty=bool(diff),
        diff=diff[:MAX_DIFF],
        diff_cut=len(diff) > MAX_DIFF,
        untracked=untracked,
        untracked_left_out=left_out,
        submodules=_submodules(folder),
    )


def tracks(folder: Path, file: Path) -> bool:
    """Whether the repository that `folder` lies in has the file: a package in an environment below it is not of it."""
    return _said(folder, "ls-files", "--error-unmatch", str(file)) is not None


def _said(folder: Path, *arguments: str) -> str | None:
    done = run_git(folder, *arguments)
    return done.stdout.strip() or None if done is not None and done.returncode == 0 else None


def _diff(folder: Path) -> str:
    """Whole and in git's own form, whatever the user's settings show diffs with."""
    done = run_git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD")
    return done.stdout if done is not None and done.returncode == 0 else ""


def _untracked(root: Path, leave_out: Path | None) -> tuple[dict[str, str], list[str]]:
    done = run_git(root, "ls-files", "--others", "--exclude-standard", "-z")
    names = [name for name in done.stdout.split("\0") if name] if done is not None and done.returncode == 0 else []
    kept: dict[str, str] = {}
    left_out: list[str] = []
    total = 0
    for name in sorted(names, key=lambda name: (name.count("/"), name)):  # what lies on top first
        if leave_out is not None and (root / name).is_relative_to(leave_out):
            continue
        text = None if _HOLDS_SECRETS.search(name) else _text_of(root / name, MAX_UNTRACKED - total)
        if text is not None:
            kept[name] = text
            total += len(text)
        elif len(left_out) < _MAX_NAMED:
            left_out.append(name)
    return kept, left_out


def _text_of(file: Path, room: int) -> str | None:
    """The text of a regular file; None for a binary one, a link, and one that is too large."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # a link, or gone meanwhile
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = stream.read(MAX_UNTRACKED_FILE + 1)
    if len(content) > min(MAX_UNTRACKED_FILE, room) or b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _submodules(folder: Path) -> dict[str, str]:
    """Commits by path, of submodules that are checked out."""
    if not (Path(_said(folder, "rev-parse", "--show-toplevel") or folder) / ".gitmodules").is_file():
        return {}
    listed = _said(folder, "submodule", "status", "--recursive") or ""
    found = re.findall(r"^[ +U]?([0-9a-f]{40,64}) (.+?)(?: \(.*\))?$", listed, re.MULTILINE)
    return {path: commit for commit, path in found}


def _without_login(address: str | None) -> str | None:
    return None if address is None else _LOGIN.sub("", address)

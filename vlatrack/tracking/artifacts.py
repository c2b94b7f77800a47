"""Files of a run directory as artifacts: they cannot lie outside it, and their content has a digest."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Artifact, ArtifactFile

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")


def checked_artifact_name(name: str) -> str:
    """The name, if it is a relative path of plain parts; TrackerError otherwise."""
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise TrackerError(f"artifact name {name!r}: use parts of letters, digits and ._+- separated by /")
    return name


def place_in_run(path: Path, run_dir: Path) -> str:
    """The path relative to the run directory; TrackerError if it lies elsewhere, also by a symbolic link."""
    if not path.exists():
        raise TrackerError(f"artifact {path}: no such file or folder")
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise TrackerError(f"artifact {path}: lies outside the run directory {run_dir}; copy it there first")
    return path.resolve().relative_to(run_dir.resolve()).as_posix()


@dataclass(frozen=True)
class KnownDigests:
    """The SHA-256 of files by their path in an artifact, as they were at a time (Unix milliseconds; None: as they are
    now)."""

    sha256: Mapping[str, str] = field(default_factory=dict)
    at_ms: int | None = 0


def read_artifact(name: str, place: str, run_dir: Path, *, known: KnownDigests | None = None) -> Artifact:
    """The artifact as it lies in the run directory now; reads what has changed since its digest became known.

    Raises TrackerError if it is gone, empty, or holds a symbolic link to a file outside the run directory.
    """
    root = run_dir.resolve() / place
    known = known or KnownDigests()
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()] if root.is_dir() else [root]
    for path in paths:
        place_in_run(path, run_dir)
    try:
        files = tuple(_read_file(path, _place(path, root), known) for path in paths)
    except FileNotFoundError as error:
        raise TrackerError(f"artifact {place}: removed while it was read") from error
    if not files:
        raise TrackerError(f"artifact {place}: the folder is empty")
    listing = "".join(f"{file.sha256}  {file.place}\n" for file in files)
    return Artifact(name, root.is_dir(), files, hashlib.sha256(listing.encode()).hexdigest())


def _place(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _read_file(path: Path, place: str, known: KnownDigests) -> ArtifactFile:
    """Weights of many gigabytes are read once, when they are logged, and not for each tracker again."""
    stat = path.stat()
    if place in known.sha256 and (known.at_ms is None or stat.st_mtime_ns < known.at_ms * 1_000_000):
        return ArtifactFile(path, place, known.sha256[place], stat.st_size)
    with path.open("rb") as file:
        return ArtifactFile(path, place, hashlib.file_digest(file, "sha256").hexdigest(), stat.st_size)

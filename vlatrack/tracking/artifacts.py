"""Files of a run directory as artifacts: they cannot lie outside it, their content has a digest, and a tracker copies
them or knows them by reference."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Artifact, ArtifactFile

BYTES_PER_MB = 1_000_000
CHECKPOINTS = "checkpoints/"
"""Begins the name of every artifact that is a checkpoint."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")


def checked_artifact_name(name: str) -> str:
    """The name, if it is a relative path of plain parts; TrackerError otherwise."""
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise TrackerError(f"artifact name {name!r}: use parts of letters, digits and ._+- separated by /")
    return name


def path_in_run(path: Path, run_dir: Path) -> str:
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


def read_artifact(name: str, path: str, run_dir: Path, *, known: KnownDigests | None = None) -> Artifact:
    """The artifact at this path of the run directory, as it is now; reads what has changed since its digest was known.

    Raises TrackerError if it is gone, empty, or holds a symbolic link to a file outside the run directory.
    """
    root = run_dir.resolve() / path
    known = known or KnownDigests()
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()] if root.is_dir() else [root]
    for file in paths:
        path_in_run(file, run_dir)
    try:
        files = tuple(
            _read_file(file, file.name if file == root else file.relative_to(root).as_posix(), known) for file in paths
        )
    except FileNotFoundError as error:
        raise TrackerError(f"artifact {path}: removed while it was read") from error
    if not files:
        raise TrackerError(f"artifact {path}: the folder is empty")
    listing = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return Artifact(name, root.is_dir(), files, hashlib.sha256(listing.encode()).hexdigest())


def _read_file(path: Path, name: str, known: KnownDigests) -> ArtifactFile:
    """Weights of many gigabytes are read once, when they are logged, and not for each tracker again."""
    stat = path.stat()
    if name in known.sha256 and (known.at_ms is None or stat.st_mtime_ns < known.at_ms * 1_000_000):
        return ArtifactFile(path, name, known.sha256[name], stat.st_size)
    with path.open("rb") as file:
        return ArtifactFile(path, name, hashlib.file_digest(file, "sha256").hexdigest(), stat.st_size)


@dataclass(frozen=True)
class CopyRule:
    """A checkpoint is copied whole or not at all, whatever its size; of other artifacts, files up to a size are."""

    checkpoints: bool = False
    up_to_mb: float = 100

    def by_reference(self, artifact: Artifact) -> tuple[ArtifactFile, ...]:
        """The files that stay where they are."""
        if artifact.name.startswith(CHECKPOINTS):
            return () if self.checkpoints else artifact.files
        return tuple(file for file in artifact.files if file.size > self.up_to_mb * BYTES_PER_MB)


def reference_text(artifact: Artifact, files: Sequence[ArtifactFile]) -> str:
    """JSON that says where these files of an artifact lie, how large they are and what they hold."""
    described = [{"path": str(f.path), "size": f.size, "sha256": f.sha256} for f in files]
    reference = {"artifact": artifact.name, "aliases": list(artifact.aliases), "files": described}
    return json.dumps(reference, indent=2) + "\n"

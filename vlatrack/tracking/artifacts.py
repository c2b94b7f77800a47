"""Files of a run directory as artifacts: they cannot lie outside it, their content has a digest, and a tracker copies
them or knows them by reference."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.tracking.arguments import shown
from vlatrack.tracking.backends.base import Artifact, ArtifactFile
from vlatrack.tracking.run_files import resolved_path

BYTES_PER_MB = 1_000_000
CHECKPOINTS = "checkpoints/"
"""Begins the name of every artifact that is a checkpoint."""
POLICIES = "policies/"
"""Begins the name of every artifact that is an exported policy."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def artifact_data(
    path: Path | str,
    run_dir: Path,
    *,
    name: str,
    aliases: Sequence[str],
    sha256: Mapping[str, str] | None,
    only: Sequence[str] = (),
    table: str | None = None,
) -> dict[str, Any]:
    """What the journal keeps of an artifact; see `TrackedRun.log_artifact`, whose errors it raises."""
    checked_artifact_name(name)
    if not isinstance(path, str | Path):
        raise TrackerError(f"artifact {name}: {shown(path)} is no path; give a text or a Path")
    if not isinstance(sha256, Mapping | None):
        raise TrackerError(f"artifact {name}: sha256={shown(sha256)}: no mapping of files to digests")
    for what, texts, example in (("aliases", aliases, "best"), ("only", only, "weights.bin")):
        if (
            isinstance(texts, str)
            or not isinstance(texts, Iterable)
            or not all(isinstance(text, str) for text in texts)
        ):
            told = f"{what}={shown(texts)}: not a list of texts; write {what}=['{example}']"
            raise TrackerError(f"artifact {name}: {told}")
    known = KnownDigests(sha256 or {}, at_ms=None)
    if wrong := [file for file, digest in known.sha256.items() if not _SHA256.fullmatch(str(digest))]:
        raise TrackerError(f"artifact {name}: {wrong[0]}: its sha256 is not 64 hexadecimal digits")
    path = Path(path)
    try:
        if not path.exists() and (run_dir / path).exists():
            path = run_dir / path
        place = path_in_run(path, run_dir)
        artifact = read_artifact(name, place, run_dir, known=known, only=only)
    except OSError as error:
        raise TrackerError(f"artifact {shown(error.filename or path)}: {error.strerror}; make it readable") from error
    files = {file.name: file.sha256 for file in artifact.files}
    if table is not None and table not in files:
        raise TrackerError(f"artifact {name}: its table {shown(table)} is none of its files")
    data = {"name": name, "place": place, "sha256": artifact.sha256, "files": files, "aliases": list(aliases)}
    return data | ({"only": list(only)} if only else {}) | ({} if table is None else {"table": table})


def checked_artifact_name(name: str) -> str:
    """The name, if it is a relative path of plain parts; TrackerError otherwise."""
    if not isinstance(name, str) or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise TrackerError(f"artifact name {shown(name)}: use parts of letters, digits and ._+- separated by /")
    return name


def path_in_run(path: Path, run_dir: Path) -> str:
    """The path relative to the run directory; TrackerError if it lies elsewhere, also by a symbolic link, or if no line
    can show it."""
    resolved = resolved_path(path)
    if not path.exists():
        raise TrackerError(f"artifact {path}: no such file or folder")
    if not resolved.is_relative_to(run_dir.resolve()):
        raise TrackerError(f"artifact {path}: lies outside the run directory {run_dir}; copy it there first")
    return resolved.relative_to(run_dir.resolve()).as_posix()


@dataclass(frozen=True)
class KnownDigests:
    """The SHA-256 of files by their path in an artifact, as they were at a time (Unix milliseconds; None: as they are
    now)."""

    sha256: Mapping[str, str] = field(default_factory=dict)
    at_ms: int | None = 0


def read_artifact(
    name: str, path: str, run_dir: Path, *, known: KnownDigests | None = None, only: Sequence[str] = ()
) -> Artifact:
    """The artifact at this path of the run directory, as it is now; reads what has changed since its digest was known.

    `only` names the files and folders in it that count; none: all do.

    Raises TrackerError if it is gone, empty, or holds a symbolic link to a file outside the run directory, or what is
    no file (a pipe, a socket, a device); OSError if it cannot be read.
    """
    root = run_dir.resolve() / path
    known = known or KnownDigests()
    paths = _files_below(root, only) if root.is_dir() else [root]
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


def _files_below(folder: Path, only: Sequence[str]) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read is not an empty one

    found = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    chosen = [folder / name for name in only]
    if chosen:
        found = [path for path in found if any(path.is_relative_to(place) for place in chosen)]
    return sorted(path for path in found if path.exists())


def _read_file(path: Path, name: str, known: KnownDigests) -> ArtifactFile:
    """Weights of many gigabytes are read once, when they are logged, and not for each tracker again."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise TrackerError(f"artifact {path}: a pipe, socket or device; only files and folders can be logged")
    if name in known.sha256 and (known.at_ms is None or status.st_mtime_ns < known.at_ms * 1_000_000):
        return ArtifactFile(path, name, known.sha256[name], status.st_size)
    with path.open("rb") as file:
        return ArtifactFile(path, name, hashlib.file_digest(file, "sha256").hexdigest(), status.st_size)


@dataclass(frozen=True)
class CopyRule:
    """A checkpoint is copied whole or not at all, whatever its size, and a policy whole: somebody has asked for it. Of
    other artifacts, files up to a size are."""

    checkpoints: bool = False
    up_to_mb: float = 100

    def by_reference(self, artifact: Artifact) -> tuple[ArtifactFile, ...]:
        """The files that stay where they are."""
        if artifact.name.startswith(CHECKPOINTS):
            return () if self.checkpoints else artifact.files
        if artifact.name.startswith(POLICIES):
            return ()
        return tuple(file for file in artifact.files if file.size > self.up_to_mb * BYTES_PER_MB)


def reference_text(artifact: Artifact, files: Sequence[ArtifactFile]) -> str:
    """JSON that says where these files of an artifact lie, how large they are and what they hold."""
    described = [{"path": str(f.path), "size": f.size, "sha256": f.sha256} for f in files]
    reference = {"artifact": artifact.name, "aliases": list(artifact.aliases), "files": described}
    return json.dumps(reference, indent=2) + "\n"

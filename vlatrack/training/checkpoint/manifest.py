"""files.json, the manifest of a checkpoint: its files with their digests, and the digest that names its policy."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import CheckpointError

FORMAT = 3
FILES, STATE, OPTIMIZER, TRAINING = "files.json", "state.json", "optimizer.pt", "training"

_READERS = 4
"""Files that are hashed at once; hashing releases the interpreter, and one core does about a gigabyte a second."""


@dataclass(frozen=True)
class StoredFile:
    """What the manifest says of a file."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Manifest:
    """files.json: the files of a checkpoint and their digests."""

    format: int
    sha256: Mapping[str, str]  # by path inside the checkpoint
    size: Mapping[str, int]  # bytes; empty in format 1
    policy_sha256: str
    """The policy's digest, which names it everywhere: sha256 over the names and digests of all files that decided how
    it acts when its checkpoint was committed. Whoever stores the same policy in other files (an export puts shards
    together) passes it on; it is not computed anew, since it would depend on how the weights were sharded."""


def is_needed_to_resume_only(name: str) -> bool:
    """Whether a file of a checkpoint, by its path in there, is of no use to an exported policy."""
    return name in (OPTIMIZER, STATE) or name.startswith(f"{TRAINING}/")


def read_manifest(checkpoint: Path) -> Manifest:
    """files.json of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or a later vlatrack wrote it.
    """
    try:
        stored = json.loads((checkpoint / FILES).read_text())
        if "format" not in stored:
            digests = {name: str(digest) for name, digest in stored.items()}
            return Manifest(1, digests, {}, digest_of_policy(digests))
        if stored["format"] > FORMAT:
            raise CheckpointError(
                f"{checkpoint}: has format {stored['format']}, this vlatrack reads up to {FORMAT}; update vlatrack"
            )
        files = stored["files"]
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
        policy_sha256 = digest_of_policy(digests) if stored["format"] < 3 else str(stored["policy_sha256"])
        return Manifest(stored["format"], digests, sizes, policy_sha256)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; not a complete checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint / FILES}: not readable ({error})") from error


def write_manifest(
    folder: Path, known: Mapping[str, StoredFile] | None = None, *, policy_sha256: str | None = None
) -> Manifest:
    """Write files.json with the sha256 of every file below ``folder``, and flush all of them to the disk.

    Args:
        known: files that were hashed and flushed as they were written.
        policy_sha256: the digest that the policy has by now; None: it is new.

    Raises:
        CheckpointError: a file of ``known`` is not there as it was written.
        OSError: files.json cannot be written.
    """
    known = known or {}
    for name, stored in known.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != stored.size:
            raise CheckpointError(
                f"{file}: written by another process and not to be seen here; all processes need the same runs folder"
            )
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: known.get(name) or _hashed(path) for name, path in sorted(files.items()) if name != FILES}
    digests = {name: stored.sha256 for name, stored in found.items()}
    manifest = Manifest(
        FORMAT,
        digests,
        {name: stored.size for name, stored in found.items()},
        policy_sha256 or digest_of_policy(digests),
    )
    listing = {name: {"sha256": stored.sha256, "bytes": stored.size} for name, stored in found.items()}
    content = {"format": FORMAT, "policy_sha256": manifest.policy_sha256, "files": listing}
    (folder / FILES).write_text(json.dumps(content, indent=1) + "\n")
    flush(path for path in [*folder.rglob("*"), folder] if path.relative_to(folder).as_posix() not in known)
    return manifest


def digest_of_policy(sha256: Mapping[str, str]) -> str:
    """sha256 over the names and digests of the files that decide how a policy acts.

    spec.yaml is left out: it also holds paths and trackers, which do not change the policy.
    """
    deciding = sorted(name for name in sha256 if not is_needed_to_resume_only(name) and name != "spec.yaml")
    return hashlib.sha256("".join(f"{sha256[name]}  {name}\n" for name in deciding).encode()).hexdigest()


def check_files(checkpoint: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Read files and compare their sha256 with the manifest.

    Args:
        names: the files to look at; None: all of them.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    chosen = list(manifest.sha256 if names is None else names)
    files = [inside(checkpoint, name) for name in chosen]
    with ThreadPoolExecutor(_READERS) as readers:
        for name, file, found in zip(chosen, files, readers.map(_read_digest, files), strict=True):
            if found != manifest.sha256[name]:
                raise CheckpointError(f"{file}: truncated or altered (its sha256 differs from {FILES})")


def inside(checkpoint: Path, name: str) -> Path:
    """The path of a file of the manifest.

    Raises:
        CheckpointError: the name leads out of the checkpoint.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{checkpoint / FILES}: names {name!r}, which lies outside the checkpoint")
    return checkpoint / name


def flush(paths: Iterable[Path]) -> None:
    """Have the disk hold these files and folders: a power cut after a rename must not leave them empty."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _hashed(file: Path) -> StoredFile:
    with file.open("rb") as stream:
        return StoredFile(hashlib.file_digest(stream, "sha256").hexdigest(), file.stat().st_size)


def _read_digest(file: Path) -> str:
    try:
        return _hashed(file).sha256
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; not a complete checkpoint") from error

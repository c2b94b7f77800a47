"""Artifacts at W&B: versions with aliases, whose weights and large files are references."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from vlatrack.tracking.artifacts import CHECKPOINTS, POLICIES, CopyRule, reference_text
from vlatrack.tracking.backends.base import Artifact, ArtifactFile, DatasetInput, RejectedError
from vlatrack.tracking.evaluated import EVALUATION_SET

REFERENCES = "vlatrack-references.json"
"""Lists, in an artifact, the files that are not copied."""

MODEL = "model"
"""The type of artifacts that W&B's registry of models takes."""

DATASET, EPISODE_SET = "dataset", "episode-set"
"""The types of artifacts that a run uses."""

VIDEO = ".mp4"

LONGEST_NAME = 128
TIMEOUT_S = 600
SLOWEST_UPLOAD_PER_S = 2_000_000
"""Bytes."""

_VERSIONS = (CHECKPOINTS, POLICIES)
"""Artifacts whose name begins so are versions of one, told apart by alias; W&B moves `latest` to the newest itself."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


def put_artifact(run: wandb.Run, artifact: Artifact, rule: CopyRule, *, wait: bool) -> None:
    """Log the artifact, and wait until it is there."""
    kind, _, version = artifact.name.partition("/")
    kind = _NOT_IN_NAMES.sub("-", kind)
    is_version = artifact.name.startswith(_VERSIONS)
    name = collection_of(run.id, artifact.name)
    aliases = ["latest", *([_NOT_IN_NAMES.sub("-", version)] if is_version else []), *artifact.aliases]
    left = rule.by_reference(artifact)
    logged = run.log_artifact(
        bundle_of(name, MODEL if artifact.name.startswith(POLICIES) else kind, artifact, left), aliases=aliases
    )
    if wait:
        copied = sum(file.size for file in artifact.files if file not in left)
        logged.wait(TIMEOUT_S + copied // SLOWEST_UPLOAD_PER_S)


def collection_of(run_id: str, name: str) -> str:
    """What W&B calls the collection that has an artifact of a run as a version."""
    return _NOT_IN_NAMES.sub("-", f"{run_id}-{name.partition('/')[0] if name.startswith(_VERSIONS) else name}")


def bundle_of(name: str, kind: str, artifact: Artifact, left: Sequence[ArtifactFile]) -> wandb.Artifact:
    """The artifact as W&B takes it, with the files in `left` as references.

    W&B tells versions apart by their files, and a reference without a checksum by its address alone. A checksum of
    W&B's own would read the file again, so our digests stand in a small file beside the references."""
    references = {file.name: {"size": file.size, "sha256": file.sha256} for file in left}
    metadata = {"name": artifact.name, "sha256": artifact.sha256, "references": references}
    bundle = wandb.Artifact(name, kind, metadata=metadata)
    for file in artifact.files:
        if file in left:
            bundle.add_reference(file.path.as_uri(), name=file.name, checksum=False)
        else:
            bundle.add_file(str(file.path), name=file.name, policy="immutable", skip_cache=True)
    for file in artifact.files:  # after the videos, of which the table then holds no second copy
        if file.name == artifact.table and file not in left:
            bundle.add(_table(file, artifact.files), Path(file.name).stem)
    if left:
        with bundle.new_file(REFERENCES, encoding="utf-8") as listing:
            listing.write(reference_text(artifact, left))
    return bundle


def _table(file: ArtifactFile, files: Sequence[ArtifactFile]) -> wandb.Table:
    """The table in a file, with the videos that its cells name; RejectedError if it is none."""
    videos = {file.name: str(file.path) for file in files if file.name.endswith(VIDEO)}
    try:
        content = json.loads(file.path.read_text(encoding="utf-8"))
        rows = [[_cell(value, videos) for value in row] for row in content["data"]]
        return wandb.Table(columns=content["columns"], data=rows, allow_mixed_types=True)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise RejectedError(f"{file.name}: no table with columns and data ({error!r})") from error


def _cell(value: object, videos: Mapping[str, str]) -> object:
    if not isinstance(value, str):
        return value
    return wandb.Video(videos[value]) if value in videos else value or None


def use_dataset(run: wandb.Run, dataset: DatasetInput) -> None:
    """Make the dataset an input of the run; runs that use the same one share a version of its artifact."""
    kind = EPISODE_SET if dataset.split == EVALUATION_SET else DATASET
    name = _NOT_IN_NAMES.sub("-", f"{kind}-{dataset.name}")[:LONGEST_NAME]
    used = wandb.Artifact(name, kind, metadata={"split": dataset.split, "sha256": dataset.sha256})
    with used.new_file(f"{kind}.json", encoding="utf-8") as described:
        described.write(json.dumps({"sha256": dataset.sha256, "source": dataset.source}, indent=1) + "\n")
    run.use_artifact(used)

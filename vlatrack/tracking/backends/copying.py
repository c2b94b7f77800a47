"""What of an artifact a tracker copies, and what it knows by reference only: by place, size and digest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlatrack.tracking.backends.base import Artifact, ArtifactFile

BYTES_PER_MB = 1_000_000
CHECKPOINTS = "checkpoints/"
"""Begins the name of every artifact that is a checkpoint."""


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

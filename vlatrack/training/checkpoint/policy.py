"""The description of a policy in its checkpoint: policy.json, or in format 1 files of the run directory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatrack import __version__
from vlatrack.data.recorded import ImageSizes
from vlatrack.data.statistics import NormStats
from vlatrack.errors import CheckpointError, DataError, TokenError
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.checkpoint.manifest import FORMAT, STATE, read_manifest

POLICY, SPEC = "policy.json", "spec.yaml"
TEXT_TOKENIZER, IMAGE_TOKENIZER = "text_tokenizer", "image_tokenizer"


@dataclass(frozen=True)
class PolicyRecord:
    """Everything about a stored policy but its weights."""

    checkpoint: Path
    spec_file: Path
    bins: int
    norm_stats: NormStats
    geometry: Mapping[str, Any] | None  # of the backbone; None in format 1
    fingerprints: Mapping[str, str]  # digests of the data and of pretrained weights, by name
    lineage: tuple[Mapping[str, str], ...]  # the policies that the weights were initialised from, oldest first
    text_tokenizer: Path | None  # folder; None in format 1
    image_tokenizer: Path  # folder
    policy_sha256: str
    image_sizes: ImageSizes = field(default_factory=dict)  # of the training data; empty in checkpoints of before

    def write(self, folder: Path, *, experiment_hash: str, backbone_kind: str) -> None:
        """Write policy.json into ``folder``."""
        assert self.geometry is not None, "only format 1 lacks it"
        content = {
            "format": FORMAT,
            "vlatrack": __version__,
            "hash": experiment_hash,
            "backbone": {"kind": backbone_kind, "geometry": dict(self.geometry)},
            "bins": self.bins,
            "norm_stats": self.norm_stats.to_json(),
            "image_sizes": {camera: list(size) for camera, size in self.image_sizes.items()},
            "fingerprints": dict(self.fingerprints),
            "lineage": [dict(parent) for parent in self.lineage],
        }
        (folder / POLICY).write_text(json.dumps(content, indent=1) + "\n")


def read_policy(checkpoint: Path) -> PolicyRecord:
    """The description of the policy in a verified checkpoint, of this format or of format 1.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    manifest = read_manifest(checkpoint)
    read = _read_format_1 if manifest.format == 1 else _read
    try:
        return read(checkpoint, manifest.policy_sha256)
    except (OSError, ValueError, KeyError, TypeError, DataError, TokenError) as error:
        raise CheckpointError(f"{checkpoint}: its description of the policy cannot be read ({error})") from error


def _read(checkpoint: Path, policy_sha256: str) -> PolicyRecord:
    stored = json.loads((checkpoint / POLICY).read_text())
    return PolicyRecord(
        checkpoint,
        spec_file=checkpoint / SPEC,
        bins=stored["bins"],
        norm_stats=NormStats.from_json(stored["norm_stats"]),
        geometry=stored["backbone"]["geometry"],
        fingerprints=dict(stored["fingerprints"]),
        lineage=tuple(stored["lineage"]),
        text_tokenizer=checkpoint / TEXT_TOKENIZER,
        image_tokenizer=checkpoint / IMAGE_TOKENIZER,
        policy_sha256=policy_sha256,
        image_sizes={camera: (height, width) for camera, (height, width) in stored.get("image_sizes", {}).items()},
    )


def _read_format_1(checkpoint: Path, policy_sha256: str) -> PolicyRecord:
    run_dir = checkpoint.resolve().parent.parent
    identity = json.loads((checkpoint / STATE).read_text())["identity"]
    data = json.loads((run_dir / "manifest.json").read_text())["data"]
    actions, states = (
        None if identity[f"{what}_low"] is None else ValueRange(tuple(identity[f"{what}_low"]), tuple(identity[high]))
        for what, high in (("action", "action_high"), ("state", "state_high"))
    )
    if actions is None:
        raise ValueError("the range of the actions is missing")
    fingerprints = {f"data.{name}": split["sha256"] for name, split in data.items()}
    fingerprints |= {choice_of(name): choice_digest(split["episodes"]) for name, split in data.items()}
    return PolicyRecord(
        checkpoint,
        spec_file=run_dir / SPEC,
        bins=identity["bins"],
        norm_stats=NormStats(actions, states),
        geometry=None,
        fingerprints=fingerprints,
        lineage=(),
        text_tokenizer=None,
        image_tokenizer=run_dir / "tokenizer",
        policy_sha256=policy_sha256,
    )


def choice_of(split: str) -> str:
    """The name of the fingerprint of the chosen episodes of a split."""
    return f"data.{split} (choice of episodes)"


def choice_digest(chosen: Sequence[int | str]) -> str:
    """sha256 of what was chosen, such as the indices of episodes."""
    return hashlib.sha256(",".join(map(str, chosen)).encode()).hexdigest()

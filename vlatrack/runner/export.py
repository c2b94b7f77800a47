"""Export a policy: a checkpoint without the files that only a resume needs, and with plain weights."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_model

from vlatrack.builders.policy import StoredPolicy, adapter_of, build_policy
from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.adapter import merge_adapter
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.spec.load import dump_spec
from vlatrack.training.checkpoint.contents import (
    POLICY,
    TRAINING_FILES,
    WEIGHTS,
    clear_write_errors,
    inside,
    load_weights,
    write_manifest,
)


def export_policy(path: str | Path, output: str | Path, *, checkpoint: str | None = None) -> str:
    """Copy the policy of a checkpoint to the folder ``output`` and return its digest, the same as the checkpoint's.

    The adapters of a policy are merged into its weights, which makes it another policy: its digest is a new one, and
    the checkpoint's stands in its lineage.

    Args:
        path: a run, or one of its checkpoints.
        checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.

    Raises:
        VlatrackError: there is no such run or checkpoint, it is damaged or was made by vlatrack 0.1.0, or ``output``
            exists or cannot be written.
    """
    output = Path(output)
    chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
    manifest = verify_checkpoint(chosen, run)
    if manifest.format == 1:
        raise CheckpointError(
            f"{chosen}: made by vlatrack 0.1.0, whose checkpoints are not self-contained; "
            "resume the run for one more epoch first"
        )
    if output.exists():
        raise CheckpointError(f"{output}: is there already; choose another --output")
    stored = StoredPolicy.open(chosen, {} if run is None else run.settings_at_start())
    unfinished = output.with_name(f".{output.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with clear_write_errors(unfinished):
        for name in manifest.sha256:
            if name not in TRAINING_FILES:
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(chosen, name), target)
        if adapter_of(stored.spec) is not None:
            _merge(stored, unfinished)
        digest = write_manifest(unfinished).policy_sha256
        unfinished.rename(output)
    assert adapter_of(stored.spec) or digest == manifest.policy_sha256, "the same policy has the same digest"
    return digest


def _merge(stored: StoredPolicy, folder: Path) -> None:
    """Replace weights, spec and description in the copy of a policy by those of one without adapters."""
    policy = build_policy(stored.spec, stored.source(stored.spec))
    load_weights(stored.record.checkpoint, policy)
    merge_adapter(policy.backbone)
    save_model(policy, str(folder / WEIGHTS))
    backbone = stored.spec.backbone.model_copy(update={"adapter": None})
    (folder / stored.record.spec_file.name).write_text(dump_spec(stored.spec.model_copy(update={"backbone": backbone})))
    description = json.loads((folder / POLICY).read_text())
    parent = {"checkpoint": str(stored.record.checkpoint), "policy_sha256": stored.record.policy_sha256}
    description["lineage"] = [*description["lineage"], parent]
    (folder / POLICY).write_text(json.dumps(description, indent=1) + "\n")

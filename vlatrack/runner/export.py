"""Export a policy: a checkpoint without the files that only a resume needs, and with plain weights in one file."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_model

from vlatrack.builders.policy import StoredPolicy, adapter_of, build_policy
from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.adapter import merge_adapter
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.spec.load import dump_spec
from vlatrack.training.checkpoint.contents import WEIGHTS_STEM, clear_write_errors, load_weights, stored_weights
from vlatrack.training.checkpoint.manifest import inside, is_needed_to_resume_only, write_manifest
from vlatrack.training.checkpoint.policy import POLICY
from vlatrack.training.checkpoint.shards import SUFFIX, write_safetensors


def export_policy(path: str | Path, output: str | Path, *, checkpoint: str | None = None) -> str:
    """Copy the policy of a checkpoint to the folder ``output`` and return its digest, the same as the checkpoint's.

    Weights that several processes have saved become one file, tensor by tensor: the largest tensor must fit into
    memory, not all of them. The adapters of a policy are merged into its weights, which makes it another policy: its
    digest is a new one, and the checkpoint's stands in its lineage.

    Args:
        path: a run, or one of its checkpoints.
        checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.

    Raises:
        VlatrackError: there is no such run or checkpoint, it is damaged or was made by vlatrack 0.1.0, or ``output``
            exists or cannot be written.
    """
    output = Path(output)
    chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
    manifest = verify_checkpoint(chosen, run, training=False)
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
            if not is_needed_to_resume_only(name) and not _is_of_weights(name):
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(chosen, name), target)
        whole = f"{WEIGHTS_STEM}{SUFFIX}"
        if adapter_of(stored.spec) is not None:
            _merge(stored, unfinished, unfinished / whole)
            digest = write_manifest(unfinished).policy_sha256
        else:
            weights = {whole: write_safetensors(unfinished / whole, stored_weights(chosen).pieces(), {})}
            digest = write_manifest(unfinished, weights, policy_sha256=manifest.policy_sha256).policy_sha256
        unfinished.rename(output)
    return digest


def _is_of_weights(name: str) -> bool:
    return name.endswith(SUFFIX) and "/" not in name


def _merge(stored: StoredPolicy, folder: Path, weights: Path) -> None:
    """Replace spec and description in the copy of a policy by those of one without adapters, and write its weights."""
    policy = build_policy(stored.spec, stored.source(stored.spec))
    load_weights(stored.record.checkpoint, policy)
    merge_adapter(policy.backbone)
    save_model(policy, str(weights))
    backbone = stored.spec.backbone.model_copy(update={"adapter": None})
    (folder / stored.record.spec_file.name).write_text(dump_spec(stored.spec.model_copy(update={"backbone": backbone})))
    description = json.loads((folder / POLICY).read_text())
    parent = {"checkpoint": str(stored.record.checkpoint), "policy_sha256": stored.record.policy_sha256}
    description["lineage"] = [*description["lineage"], parent]
    (folder / POLICY).write_text(json.dumps(description, indent=1) + "\n")

"""Export a policy: a checkpoint without the files that only a resume needs, its weights in one file."""

import shutil
from pathlib import Path

from vlatrack.errors import CheckpointError
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.training.checkpoint.contents import WEIGHTS_STEM, clear_write_errors, stored_weights
from vlatrack.training.checkpoint.manifest import inside, is_needed_to_resume_only, write_manifest
from vlatrack.training.checkpoint.shards import SUFFIX, write_safetensors


def export_policy(path: str | Path, output: str | Path, *, checkpoint: str | None = None) -> str:
    """Copy the policy of a checkpoint to the folder ``output`` and return its digest, the same as the checkpoint's.

    Weights that several processes have saved become one file, tensor by tensor: the largest tensor must fit into
    memory, not all of them.

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
    unfinished = output.with_name(f".{output.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with clear_write_errors(unfinished):
        for name in manifest.sha256:
            if not is_needed_to_resume_only(name) and not _is_of_weights(name):
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(chosen, name), target)
        whole = f"{WEIGHTS_STEM}{SUFFIX}"
        weights = {whole: write_safetensors(unfinished / whole, stored_weights(chosen).pieces(), {})}
        write_manifest(unfinished, weights, policy_sha256=manifest.policy_sha256)
        unfinished.rename(output)
    return manifest.policy_sha256


def _is_of_weights(name: str) -> bool:
    return name.endswith(SUFFIX) and "/" not in name

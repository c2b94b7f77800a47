"""Export a policy: a checkpoint without the files that only a resume needs, and with plain weights in one file."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from safetensors.torch import save_model

from vlatrack.builders.policy import StoredPolicy, adapter_of, build_policy
from vlatrack.errors import CheckpointError, RunError
from vlatrack.importers.episodes import read_episodes
from vlatrack.models.backbones.adapter import merge_adapter
from vlatrack.runner.card import CARD, describe_policy
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.runner.recorder import start_tracking
from vlatrack.spec.load import dump_spec
from vlatrack.tracking.artifacts import POLICIES
from vlatrack.tracking.backends.base import Status
from vlatrack.tracking.backends.mlflow.model_files import write_model_files
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.privacy import private_directory, redact
from vlatrack.tracking.trust import Trust
from vlatrack.training.checkpoint.contents import WEIGHTS_STEM, clear_write_errors, load_weights, stored_weights
from vlatrack.training.checkpoint.manifest import flush, inside, is_needed_to_resume_only, read_manifest, write_manifest
from vlatrack.training.checkpoint.policy import POLICY
from vlatrack.training.checkpoint.shards import SUFFIX, write_safetensors


def export_policy(
    path: str | Path,
    output: str | Path,
    *,
    checkpoint: str | None = None,
    episodes: Iterable[str | Path] = (),
    hub_name: str | None = None,
) -> str:
    """Copy the policy of a checkpoint to the folder ``output`` and return its digest, the same as the checkpoint's.

    A model card (README.md) is added, and what `mlflow.pyfunc.load_model` reads (MLmodel); neither is part of the
    policy, and both may be edited.

    Weights that several processes have saved become one file, tensor by tensor: the largest tensor must fit into
    memory, not all of them. The adapters of a policy are merged into its weights, which makes it another policy: its
    digest is a new one, and the checkpoint's stands in its lineage.

    Args:
        path: a run, or one of its checkpoints.
        checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
        episodes: files with episodes of this policy, as `vlatrack compare` reads them, whose success the card tells.
        hub_name: under which the policy will be loaded; None: by its folder.

    Raises:
        VlatrackError: there is no such run or checkpoint, it is damaged or was made by vlatrack 0.1.0, ``output``
            exists or cannot be written, or a file of episodes cannot be read.
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
        raise CheckpointError(f"{output}: is there already; choose another folder")
    stored = StoredPolicy.open(chosen, {} if run is None else run.settings_at_start())
    tables = [read_episodes(Path(file)) for file in episodes]
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
        card = describe_policy(stored, run, policy_sha256=digest, source=hub_name or output.name, episodes=tables)
        (unfinished / CARD).write_text(redact(card.render()), encoding="utf-8")
        flush([unfinished / CARD, *write_model_files(unfinished, policy_sha256=digest), unfinished])
        unfinished.rename(output)
    return digest


def log_policy(path: str | Path, folder: str | Path, *, checkpoint: str | None = None) -> DeliveryReport:
    """Log an exported policy to the trackers of its run, as the artifact ``policies/step-…``, copied whole.

    Args:
        path, checkpoint: what it was exported from.
        folder: the export.

    Returns:
        What became of it at each tracker.

    Raises:
        VlatrackError: it was not exported from a run, or the run has not ended: its process writes the journal.
    """
    chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
    if run is None:
        raise CheckpointError(f"{path}: is no run or checkpoint of one, so that no tracker knows it; leave out --log")
    before = run_status(run.path)
    if before.status == "RUNNING":
        raise RunError(f"{run.path}: is still written; log its policy when it has ended")
    kept = run.path / POLICIES / chosen.name
    shutil.rmtree(kept, ignore_errors=True)
    private_directory(kept.parent)
    with clear_write_errors(kept):
        shutil.copytree(folder, kept)
    tracked = start_tracking(run, run.spec(), tags=run.tags_at_start(), resume=True, trust=Trust(backends=True))
    event = {"checkpoint": chosen.name, "policy_sha256": read_manifest(kept).policy_sha256}
    tracked.event("export", event)
    tracked.log_artifact(kept, name=f"{POLICIES}{chosen.name}", sha256=read_manifest(kept).sha256)
    return tracked.finish(cast(Status, before.status), reason=before.reason)


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

"""The facts of a checkpoint that the model card of its export tells."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatrack import __version__
from vlatrack.builders.policy import StoredPolicy
from vlatrack.evaluation.comparison import SuccessRate, success_by_task, success_rate
from vlatrack.evaluation.episodes import EpisodeTable
from vlatrack.metrics.schema import SPLITS
from vlatrack.reports.model_card import ActingInterface, DataSplit, ModelCard, SuccessRow
from vlatrack.reports.success import ALL_TASKS
from vlatrack.runner.directory import RunDirectory
from vlatrack.spec.load import dump_spec
from vlatrack.spec.publish import publishable, without_places
from vlatrack.tracking.journal.history import metric_history
from vlatrack.training.checkpoint.store import step_of

CARD = "README.md"


def describe_policy(
    stored: StoredPolicy, run: RunDirectory | None, *, policy_sha256: str, source: str, episodes: Sequence[EpisodeTable]
) -> ModelCard:
    """The card of the policy that is exported from a verified checkpoint.

    Args:
        run: that the checkpoint belongs to; None: of an exported policy, whose metrics are not known.
        policy_sha256: of the exported policy.
        source: what `Policy.load` is to be called with.
        episodes: evaluations of this policy.
    """
    record, spec = stored.record, stored.spec
    actions, states = record.norm_stats.actions, record.norm_stats.states
    return ModelCard(
        name=spec.name,
        source=source,
        origin=name_of_place(record.checkpoint),
        policy_sha256=policy_sha256,
        version=__version__,
        backbone=getattr(spec.backbone, "family", spec.backbone.kind),
        interface=ActingInterface(
            cameras=spec.data.cameras,
            image_size=spec.tokenizer.image.image_size,
            history=spec.data.moments,
            deltas=spec.data.history_deltas,
            horizon=spec.action_head.time_horizon,
            action_low=actions.low,
            action_high=actions.high,
            state_dim=None if states is None else states.dimensions,
        ),
        data=tuple(_splits(stored, {} if run is None else json.loads(run.manifest_file.read_text())["data"])),
        step=None if run is None else step_of(record.checkpoint),
        metrics={} if run is None else _metrics_at(run, step_of(record.checkpoint)),
        success=tuple(row for table in episodes for row in _success_rows(table)),
        lineage=tuple(_told(parent) for parent in record.lineage),
        spec=dump_spec(publishable(spec)).partition("\ntracking:")[0],  # the last part, not that of the run
    )


def name_of_place(checkpoint: Path) -> str:
    """experiment/run@checkpoint, or the name of an exported policy's folder; such a name is left as it is."""
    if not checkpoint.is_absolute():
        return str(checkpoint)
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.name
    run = checkpoint.parent.parent
    return f"{run.parent.name}/{run.name}@{checkpoint.name}"


def _told(parent: Mapping[str, str]) -> str:
    return f"`{name_of_place(Path(parent['checkpoint']))}`, policy `{parent['policy_sha256']}`"


def _splits(stored: StoredPolicy, of_run: Mapping[str, Any]) -> Iterator[DataSplit]:
    """The splits whose digests the checkpoint holds, with what the manifest of its run says of them."""
    for split in SPLITS:
        digest = stored.record.fingerprints.get(f"data.{split}")
        if digest is None:
            continue
        told, source = of_run.get(split), getattr(stored.spec.data, split)
        name = str(told["source"] if told else getattr(source, "path", None) or getattr(source, "target", split))
        episodes = len(told["episodes"]) if told else None
        yield DataSplit(split, without_places(name), episodes, told["steps"] if told else None, digest)


def _metrics_at(run: RunDirectory, step: int) -> dict[str, float]:
    found = {name: dict(values).get(step) for name, values in metric_history(run.journal).items()}
    return {name: value for name, value in found.items() if value is not None}


def _success_rows(table: EpisodeTable) -> Iterator[SuccessRow]:
    """All episodes together, then each task if there are several."""
    tasks = success_by_task(table)
    rates: dict[str, SuccessRate] = {ALL_TASKS: success_rate(table)} | (tasks if len(tasks) > 1 else {})
    for task, rate in rates.items():
        yield SuccessRow(table.name, task, rate.episodes, rate.successes, rate.errors, rate.rate, rate.wilson)

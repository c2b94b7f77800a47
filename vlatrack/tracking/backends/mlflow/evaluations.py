"""Evaluations at MLflow: their data as datasets of the run, their metrics on the LoggedModel of the checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from vlatrack.tracking.backends.base import RejectedError, Scalar
from vlatrack.tracking.backends.mlflow.artifacts import MODEL_METRICS_PER_BATCH, find_or_create_model, is_rotated_away
from vlatrack.tracking.backends.mlflow.datasets import dataset_of, put_datasets
from vlatrack.tracking.backends.mlflow.runs import batches, verdicts
from vlatrack.tracking.evaluated import Evaluated


def put_evaluation(
    client: MlflowClient, run_id: str, evaluated: Evaluated, *, uid: str, run_dir: Path, key_of: Callable[[str], str]
) -> None:
    """Tie the metrics of an evaluation, which the run has, to the checkpoint and to the data; again, it adds nothing.

    Args:
        key_of: from the name of a metric to its key.

    Raises:
        RejectedError: MLflow refuses a dataset, or has no LoggedModels.
    """
    run = client.get_run(run_id)
    if refused := put_datasets(client, run, [result.dataset for result in evaluated.results]):
        raise RejectedError("; ".join(f"{what}: {reason}" for what, reason in refused))
    if evaluated.checkpoint_seq is None or evaluated.policy_sha256 is None:
        return
    known: dict[str, Scalar] = {
        "name": evaluated.checkpoint,
        "step": evaluated.step,
        "policy_sha256": evaluated.policy_sha256,
    }
    path = str(run_dir / "checkpoints" / evaluated.checkpoint)
    if is_rotated_away(Path(path)):
        return
    model = find_or_create_model(client, run, known, f"{uid}:{evaluated.checkpoint_seq}", path)
    with verdicts(client, run_id):
        for result in evaluated.results:
            dataset = dataset_of(run, result.dataset)
            metrics = [
                Metric(
                    key_of(name),
                    value,
                    evaluated.t_ms,
                    evaluated.step,
                    model_id=model.model_id,
                    dataset_name=dataset.name,
                    dataset_digest=dataset.digest,
                    run_id=run_id,
                )
                for name, value in result.metrics.items()
                if not math.isnan(value)  # which a LoggedModel would give back as 0; the run itself keeps it
            ]
            for batch in batches(metrics, MODEL_METRICS_PER_BATCH):
                client.log_batch(run_id, metrics=batch, synchronous=True)

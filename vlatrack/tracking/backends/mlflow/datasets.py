"""The data of a run as MLflow's datasets."""

import json
from collections.abc import Sequence

from mlflow.entities import Dataset, InputTag
from mlflow.entities import DatasetInput as MlflowDatasetInput
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from vlatrack.tracking.backends.base import DatasetInput, RejectedError
from vlatrack.tracking.backends.mlflow.runs import Refused, verdicts

LONGEST_NAME, LONGEST_DIGEST = 500, 36


def stored_dataset(data: DatasetInput) -> Dataset:
    """As MLflow keeps it, which tells datasets apart by name and digest: splits of the same files need names of their
    own."""
    return Dataset(
        name=f"{data.name} ({data.split})"[:LONGEST_NAME],
        digest=data.sha256[:LONGEST_DIGEST],
        source_type="vlatrack",
        source=json.dumps({"source": data.source}),
        profile=json.dumps({"sha256": data.sha256, "source": data.source}),  # this is what its page shows
    )


def put_datasets(client: MlflowClient, run_id: str, datasets: Sequence[DatasetInput]) -> Refused:
    """Make them inputs of the run, in the context of their split; returns those that MLflow refused."""
    refused: Refused = []
    for data in datasets:
        used = MlflowDatasetInput(stored_dataset(data), [InputTag(MLFLOW_DATASET_CONTEXT, data.split)])
        try:
            with verdicts(client, run_id):
                client.log_inputs(run_id, [used])
        except RejectedError as verdict:
            refused.append((f"dataset {data.name}", str(verdict)))
    return refused

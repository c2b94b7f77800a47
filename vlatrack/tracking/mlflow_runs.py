"""How vlatrack's own runs are marked in MLflow, and found again."""

import getpass
from collections.abc import Sequence

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_USER

UID_TAG = "vlatrack.uid"


def source_tags() -> dict[str, str]:
    """Who made a run, as MLflow shows it."""
    return {MLFLOW_USER: getpass.getuser(), MLFLOW_SOURCE_NAME: "vlatrack"}


def runs_with_uid(client: MlflowClient, experiment_id: str, uid: str) -> Sequence[Run]:
    """The runs of an experiment with this uid, the earliest first; of a deleted run it knows nothing."""
    found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

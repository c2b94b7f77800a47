"""Checkpoints at MLflow: each is a LoggedModel at its step, with the metrics of that step."""

import math
from collections.abc import Mapping

from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL
from mlflow.utils.rest_utils import http_request

from vlatrack.tracking.backends.base import Rejected, Scalar, scalar_text
from vlatrack.tracking.backends.mlflow.runs import METRICS_PER_BATCH, batches, verdicts


def put_checkpoint(
    client: MlflowClient, run_id: str, data: Mapping[str, Scalar], *, identity: str, path: str, step: int
) -> None:
    """Register the checkpoint at `path`, told apart by `identity`; its weights stay where they are."""
    run = client.get_run(run_id)
    with verdicts(client, run_id):
        try:
            model_id = _find_or_create(client, run, data, identity, path)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND) or _major_version(client.tracking_uri) >= 3:
                raise
            raise Rejected("this server is older than MLflow 3 and knows no LoggedModels") from error
    # A LoggedModel's NaN would be read back as 0; the run itself keeps it.
    stored = [m for m in run.data.to_proto().metrics if m.step == step and not math.isnan(m.value)]
    metrics = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id) for m in stored]
    for batch in batches(metrics, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch, synchronous=True)
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def _major_version(uri: str) -> int:
    """Asked when an address was not found, which may as well be the fault of what stands before the server."""
    return int(http_request(get_default_host_creds(uri), "/version", "GET").text.partition(".")[0])


def _find_or_create(client: MlflowClient, run: Run, data: Mapping[str, Scalar], identity: str, path: str) -> str:
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], f"tags.`vlatrack.checkpoint` = '{identity}'", max_results=1)
    if found:
        model = found[0]
    else:
        model = client.create_logged_model(
            experiment,
            name=str(data["name"]),
            source_run_id=run.info.run_id,
            tags={MLFLOW_MODEL_IS_EXTERNAL: "true", "vlatrack.checkpoint": identity, "vlatrack.path": path},
            params={key: scalar_text(value) for key, value in data.items() if key != "name"},
            model_type="checkpoint",
        )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)

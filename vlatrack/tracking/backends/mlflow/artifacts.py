"""Artifacts at MLflow, whose files are uploaded one by one, and checkpoints, which are LoggedModels as well."""

import contextlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_MODEL_IS_EXTERNAL
from mlflow.utils.rest_utils import http_request
from requests import HTTPError

from vlatrack.metrics.schema import EVALUATE, SIMULATION
from vlatrack.tracking.artifacts import BYTES_PER_MB, CHECKPOINTS, POLICIES, CopyRule, reference_text
from vlatrack.tracking.backends.base import Artifact, ArtifactFile, RejectedError, Scalar, remote_path, scalar_text
from vlatrack.tracking.backends.mlflow.model_files import write_model_files
from vlatrack.tracking.backends.mlflow.runs import LONGEST_TAG, batches, mlflow_key, verdicts
from vlatrack.tracking.backends.mlflow.store import check_below

REFERENCE = ".reference.json"
"""Ends the name of the file that is uploaded instead of files that are not copied."""

SLOWEST_UPLOAD_PER_S = 40_000
"""Bytes."""
MOST_PATIENCE_S = 900

ARTIFACT_TAG = "mlflow.vlatrack.artifact."
"""Begins the tags with the digests of a run's artifacts; MLflow's pages do not show tags that begin with its name."""
EARLIER_ARTIFACT_TAG = "vlatrack.artifact."
"""Of runs that vlatrack 0.1 has delivered."""
_TAGS = (ARTIFACT_TAG, EARLIER_ARTIFACT_TAG)

MODEL_FILES = "vlatrack.model_files"
"""Tag of a LoggedModel that has the files which MLflow loads it by."""

OF_EVALUATIONS = (EVALUATE, SIMULATION)
"""Begin the keys of metrics that come with the dataset they were measured on."""

MODEL_METRICS_PER_BATCH = 100
"""A server refuses a LoggedModel's metrics that it has already when a batch holds more."""

_lock = threading.Lock()
_uploads: list[int] = []
"""The sizes of the files that are being uploaded now, in bytes; a run may have several MLflow servers."""


def put_artifact(client: MlflowClient, run_id: str, artifact: Artifact, rule: CopyRule) -> None:
    """Upload what is not there yet.

    The tag of the artifact holds its SHA-256 when it is complete, before that also how many of its files are: an upload
    that was cut goes on with the file that was cut.
    """
    tag, tags = mlflow_key(f"{ARTIFACT_TAG}{artifact.name}"), client.get_run(run_id).data.tags
    state = tags.get(tag) or tags.get(mlflow_key(f"{EARLIER_ARTIFACT_TAG}{artifact.name}"), "")
    if state == artifact.sha256:
        return
    left = rule.by_reference(artifact)
    copied = [file for file in artifact.files if file not in left]
    for done in range(_done(state, artifact, len(copied)), len(copied)):
        _upload(client, run_id, artifact, copied[done])
        client.set_tag(run_id, tag, f"{artifact.sha256} {done + 1}/{len(copied)}")
    if artifact.name.startswith(CHECKPOINTS) and left:
        client.log_text(run_id, reference_text(artifact, left), f"{artifact.name}{REFERENCE}")
    else:
        for file in left:
            client.log_text(run_id, reference_text(artifact, [file]), f"{remote_path(artifact, file)}{REFERENCE}")
    for file in copied:
        if file.name == artifact.table:
            _show_as_table(client, run_id, remote_path(artifact, file))
    client.set_tag(run_id, tag, artifact.sha256)


def _show_as_table(client: MlflowClient, run_id: str, path: str) -> None:
    """Note in a tag, as MLflow's own `log_table` does, that this file is a table; of too many the earliest are left
    out."""
    tables = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    if entry in tables:
        return
    tables.append(entry)
    while len(text := json.dumps(tables)) > LONGEST_TAG:
        del tables[0]
    client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, text)


def _done(state: str, artifact: Artifact, total: int) -> int:
    """How many files an earlier attempt to upload just these has left there."""
    sha256, _, progress = state.partition(" ")
    done, _, of = progress.partition("/")
    return int(done) if sha256 == artifact.sha256 and of == str(total) else 0


def _upload(client: MlflowClient, run_id: str, artifact: Artifact, file: ArtifactFile) -> None:
    folder = PurePosixPath(remote_path(artifact, file)).parent.as_posix()
    try:
        with _patience(file.size):
            client.log_artifact(run_id, str(file.path), None if folder == "." else folder)
    except HTTPError as error:
        if error.response is None or error.response.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise
        raise RejectedError(
            f"{file.name}: the server takes no file of {file.size / BYTES_PER_MB:.1f} MB (413); raise its limit, or "
            "lower copy_up_to_mb: larger files are then known by reference"
        ) from error


@contextlib.contextmanager
def _patience(size: int) -> Iterator[None]:
    """A slow network, or a server that puts a file into its store before it answers, takes longer than any other
    request may take.

    MLflow's client reads its one patience for all requests from the environment, at each request.
    """
    _set_patience(lambda: _uploads.append(size))
    try:
        yield
    finally:
        _set_patience(lambda: _uploads.remove(size))


def _set_patience(change_uploads: Callable[[], None]) -> None:
    with _lock:
        usual = MLFLOW_HTTP_REQUEST_TIMEOUT.get() - _extra_patience()
        change_uploads()
        os.environ[MLFLOW_HTTP_REQUEST_TIMEOUT.name] = str(usual + _extra_patience())


def _extra_patience() -> int:
    """Seconds."""
    return min(max(_uploads, default=0) // SLOWEST_UPLOAD_PER_S, MOST_PATIENCE_S)


def put_checkpoint(
    client: MlflowClient,
    run_id: str,
    data: Mapping[str, Scalar],
    *,
    identity: str,
    path: str,
    step: int,
    root: Path | None = None,
) -> None:
    """Register the checkpoint at `path`, told apart by `identity`; its weights stay where they are, from where
    `mlflow.pyfunc.load_model` takes them.

    Args:
        root: the only folder of this disk below which its files may be written; None: wherever the server says.
    """
    run = client.get_run(run_id)
    model = find_or_create_model(client, run, data, identity, path)
    model_id = str(model.model_id)
    # A LoggedModel's NaN would be read back as 0; the run itself keeps it. Evaluations come with their data.
    at_step = (m for m in run.data.to_proto().metrics if m.step == step and not m.key.startswith(OF_EVALUATIONS))
    stored = [m for m in at_step if not math.isnan(m.value)]
    metrics = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id) for m in stored]
    for batch in batches(metrics, MODEL_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch, synchronous=True)
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    if MODEL_FILES not in model.tags and isinstance(data.get("policy_sha256"), str):
        _put_model_files(client, run_id, model, data, path=path, root=root)


def is_rotated_away(checkpoint: Path) -> bool:
    """Whether a checkpoint was deleted where the run has others; without their folder nothing is known."""
    return checkpoint.parent.is_dir() and not checkpoint.exists()


def remove_rotated_models(client: MlflowClient, run_id: str, run_dir: Path) -> None:
    """Delete the LoggedModels of checkpoints that were rotated away and of which the run has no copy."""
    run, token = client.get_run(run_id), None
    while True:
        try:
            page = client.search_logged_models(
                [run.info.experiment_id], f"source_run_id = '{run_id}'", page_token=token
            )
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND):
                raise
            return  # a server older than MLflow 3, which has none
        for model in page:
            path = Path(model.tags.get("vlatrack.path", ""))
            copies = {mlflow_key(f"{tag}{kind}{path.name}") for tag in _TAGS for kind in (POLICIES, CHECKPOINTS)}
            is_ours = path.parent == run_dir / "checkpoints"
            if is_ours and is_rotated_away(path) and not copies & run.data.tags.keys():
                client.delete_logged_model(model.model_id)
        token = page.token
        if not token:
            return


def _major_version(uri: str) -> int:
    """Asked when an address was not found, which a proxy in front of the server may have caused as well."""
    return int(http_request(get_default_host_creds(uri), "/version", "GET").text.partition(".")[0])


def _put_model_files(
    client: MlflowClient, run_id: str, model: LoggedModel, data: Mapping[str, Scalar], *, path: str, root: Path | None
) -> None:
    """What makes the model one that MLflow can load, by reference to the checkpoint or to copies in the run."""
    if root is not None:
        check_below(str(model.artifact_location), root)
    copies = [f"runs:/{run_id}/{kind}{data['name']}" for kind in (POLICIES, CHECKPOINTS)]
    reference = {"checkpoint": path, "copies": copies}
    with tempfile.TemporaryDirectory() as folder:
        for file in write_model_files(Path(folder), policy_sha256=str(data["policy_sha256"]), reference=reference):
            client.log_model_artifact(model.model_id, str(file))
    if MLFLOW_MODEL_IS_EXTERNAL in model.tags:
        client.delete_logged_model_tag(model.model_id, MLFLOW_MODEL_IS_EXTERNAL)
    client.set_logged_model_tags(model.model_id, {MODEL_FILES: "true"})


def find_or_create_model(
    client: MlflowClient, run: Run, data: Mapping[str, Scalar], identity: str, path: str
) -> LoggedModel:
    """The LoggedModel of the checkpoint at `path`, told apart by `identity`."""
    with verdicts(client, run.info.run_id):
        try:
            return _find_or_create(client, run, data, identity, path)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND) or _major_version(client.tracking_uri) >= 3:
                raise
            raise RejectedError("this server is older than MLflow 3 and knows no LoggedModels") from error


def _find_or_create(
    client: MlflowClient, run: Run, data: Mapping[str, Scalar], identity: str, path: str
) -> LoggedModel:
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
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

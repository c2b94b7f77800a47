"""MLflow, 3.17 and later: a SQLite store beside the runs by default, or any tracking server."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mlflow.entities import (
    Dataset,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.entities import DatasetInput as MlflowDatasetInput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_IS_EXTERNAL

from vlatrack.tracking.backend import (
    Artifact,
    Audit,
    DatasetInput,
    Position,
    Rejected,
    Rejection,
    RunEvent,
    RunFinish,
    RunStart,
    metric_name,
    scalar_text,
)
from vlatrack.tracking.copying import CopyRule
from vlatrack.tracking.journal import Record
from vlatrack.tracking.layout import RunFiles
from vlatrack.tracking.metric_keys import LONGEST_KEY, mlflow_key
from vlatrack.tracking.mlflow_artifacts import put_artifact
from vlatrack.tracking.mlflow_groups import join_group
from vlatrack.tracking.mlflow_runs import UID_TAG, runs_with_uid, source_tags
from vlatrack.tracking.privacy import redact

LONGEST_PARAM, LONGEST_TAG = 6000, 8000
LONGEST_DATASET_NAME, LONGEST_DIGEST = 500, 36
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
_SHOWN_AS_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The user interface would otherwise open on its pages for language model applications."""

T = TypeVar("T")


class MlflowBackend:
    """One run in MLflow, found again by its uid tag. Metric step = training step, timestamps = the journal's.

    MLflow stores the same (key, timestamp, step, value) once, so a replay adds nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        naming: str,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        copy_checkpoints: bool = False,
        copy_up_to_mb: float = 100,
    ) -> None:
        self.url: str | None = None
        self._run_dir = run_dir.absolute()
        self._runs = RunFiles(run_dir).runs
        self._naming = naming
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._experiment = experiment
        self._copy_rule = CopyRule(copy_checkpoints, copy_up_to_mb)
        self._run_id = self._experiment_of_run = self._uid = ""
        self._infinite: set[str] = set()

    def open(self, start: RunStart, acknowledged: int) -> Position:
        uri = self._store
        # Only the shared local store: a server that hangs must not hold up the other backends.
        with _one_at_a_time(self._runs / ".mlflow.lock") if self._uri is None else contextlib.nullcontext():
            self._client = MlflowClient(uri)
            experiment = self._experiment_id(self._experiment or start.experiment)
            run, is_new = self._find_or_create(experiment, start)
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        if start.group is not None:
            join_group(self._client, run, start.group)
        self._put_params(run, start.params)
        self._put_tags({mlflow_key(name): value for name, value in start.tags.items()})
        local = uri.startswith("sqlite:")
        place = f"{redact(uri).rstrip('/')}/#/experiments/{experiment}/runs/{self._run_id}"
        self.url = f"vlatrack ui --runs {self._runs}" if local and self._uri is None else place
        self._put_datasets(start.datasets)
        self._experiment_of_run, self._uid = experiment, start.uid
        return Position(0, 0) if is_new else Position(acknowledged + 1, acknowledged + 1)

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        metrics, rejections = [], []
        for record in records:
            for name, value in record.data.items():
                key = mlflow_key(metric_name(name, self._naming))
                if 0 < len(key) <= LONGEST_KEY:
                    metrics.append(Metric(key, value, record.t_ms, record.step or 0))
                else:
                    rejections.append(Rejection(record.seq, name[:300], f"MLflow keys have 1 to {LONGEST_KEY} letters"))
        with _verdicts():
            for batch in _batches(metrics, METRICS_PER_BATCH):
                # Newest first: the store keeps the latest value of each key, and so replaces it once a batch.
                self._client.log_batch(self._run_id, metrics=batch[::-1], synchronous=True)
        self._mark_infinite({metric.key for metric in metrics if math.isinf(metric.value)})
        return rejections

    def put_artifact(self, artifact: Artifact) -> None:
        put_artifact(self._client, self._run_id, artifact, self._copy_rule)

    def alert(self, title: str, text: str, record: Record) -> None:
        self._put_tags({f"vlatrack.alert.{record.seq}": f"{title}: {text}"})

    def event(self, event: RunEvent) -> None:
        """A checkpoint becomes a LoggedModel at its step, with the metrics of that step; its weights stay where they
        are."""
        if event.name != "checkpoint":
            return
        step, name = event.data.get("step"), event.data.get("name")
        if not isinstance(step, int) or not isinstance(name, str):
            raise Rejected("a checkpoint event has a step and a name")
        with _verdicts():
            model_id = self._find_or_create_model(event, name)
        run = self._client.get_run(self._run_id)
        # A LoggedModel's NaN would be read back as 0; the run itself keeps it.
        stored = [m for m in run.data.to_proto().metrics if m.step == step and not math.isnan(m.value)]
        metrics = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id) for m in stored]
        for batch in _batches(metrics, METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=batch, synchronous=True)
        outputs = run.outputs.model_outputs if run.outputs is not None else []
        if model_id not in {output.model_id for output in outputs}:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model_id, step)])

    def finish(self, finish: RunFinish) -> None:
        self._put_tags({} if finish.reason is None else {"vlatrack.reason": finish.reason})
        self._client.set_terminated(self._run_id, finish.status, finish.t_ms)

    def audit(self, start: RunStart) -> Audit:
        if self._uri is None and not (self._runs / "mlflow.db").exists():
            return Audit()
        client = MlflowClient(self._store)
        experiment = client.get_experiment_by_name(self._experiment or start.experiment)
        runs = [] if experiment is None else runs_with_uid(client, experiment.experiment_id, start.uid)
        if not runs:
            return Audit()
        keys = runs[0].data.metrics
        values = sum(len(client.get_metric_history(runs[0].info.run_id, key)) for key in keys)
        return Audit(runs[0].info.status, len(keys), values)

    def close(self) -> None:
        """Nothing is held open between calls."""

    @property
    def _store(self) -> str:
        return self._uri or f"sqlite:///{self._runs / 'mlflow.db'}"

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = (self._runs / "mlartifacts").as_uri() if self._uri is None else None
        try:
            return str(self._client.create_experiment(name, location, tags=_SHOWN_AS_TRAINING))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _find_or_create(self, experiment_id: str, start: RunStart) -> tuple[Run, bool]:
        found = runs_with_uid(self._client, experiment_id, start.uid)
        if found:
            return found[0], False
        tags = {UID_TAG: start.uid, **source_tags()}
        return self._client.create_run(experiment_id, start.t_ms, tags=tags, run_name=start.name), True

    def _put_params(self, run: Run, params: Mapping[str, object]) -> None:
        """Params are immutable in MLflow: what changed since the first start becomes a tag."""
        texts = {mlflow_key(name): scalar_text(value) for name, value in params.items()}
        known = run.data.params
        new = [Param(key, text[:LONGEST_PARAM]) for key, text in texts.items() if key not in known]
        for batch in _batches(new, PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, params=batch, synchronous=True)
        self._put_tags(
            {
                f"vlatrack.changed.{k}": t
                for k, t in texts.items()
                if known.get(k, t[:LONGEST_PARAM]) != t[:LONGEST_PARAM]
            }
        )
        cut = sorted(key for key, text in texts.items() if len(text) > LONGEST_PARAM)
        if cut:
            self._put_tags({"vlatrack.truncated_params": f"whole in the spec artifact: {', '.join(cut)}"})

    def _put_datasets(self, datasets: Sequence[DatasetInput]) -> None:
        """MLflow tells datasets apart by name and digest; splits of the same files need names of their own."""
        inputs = [
            MlflowDatasetInput(
                Dataset(
                    name=f"{data.name} ({data.split})"[:LONGEST_DATASET_NAME],
                    digest=data.sha256[:LONGEST_DIGEST],
                    source_type="vlatrack",
                    source=json.dumps({"source": data.source}),
                    profile=json.dumps({"sha256": data.sha256}),
                ),
                [InputTag(MLFLOW_DATASET_CONTEXT, data.split)],
            )
            for data in datasets
        ]
        if inputs:
            self._client.log_inputs(self._run_id, inputs)

    def _mark_infinite(self, keys: set[str]) -> None:
        """MLflow stores the largest finite number for an infinity: a tag for each key says so."""
        new = keys - self._infinite
        told = "its values of ±1.797e308 are ±Infinity, which MLflow cannot store"
        self._put_tags({f"vlatrack.infinite.{key}"[:LONGEST_KEY]: told for key in new})
        self._infinite |= new

    def _find_or_create_model(self, event: RunEvent, name: str) -> str:
        tags = {
            MLFLOW_MODEL_IS_EXTERNAL: "true",
            "vlatrack.checkpoint": f"{self._uid}:{event.seq}",
            "vlatrack.path": str(self._run_dir / "checkpoints" / name),
        }
        known = f"tags.`vlatrack.checkpoint` = '{tags['vlatrack.checkpoint']}'"
        found = self._client.search_logged_models([self._experiment_of_run], known, max_results=1)
        if found:
            model = found[0]
        else:
            params = {key: scalar_text(value) for key, value in event.data.items() if key != "name"}
            model = self._client.create_logged_model(
                self._experiment_of_run,
                name=name,
                source_run_id=self._run_id,
                tags=tags,
                params=params,
                model_type="checkpoint",
            )
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def _put_tags(self, tags: Mapping[str, str]) -> None:
        for batch in _batches([RunTag(key, text[:LONGEST_TAG]) for key, text in tags.items()], PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, tags=batch, synchronous=True)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


@contextlib.contextmanager
def _verdicts() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        # The other is a server of MLflow 2, which knows no LoggedModels.
        if error.error_code in (ErrorCode.Name(INVALID_PARAMETER_VALUE), ErrorCode.Name(ENDPOINT_NOT_FOUND)):
            raise Rejected(error.message) from error
        raise


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Runs that start together must not both create the database, or the same experiment."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)

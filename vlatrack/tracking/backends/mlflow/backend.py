"""MLflow, 3.17 and later: a SQLite store beside the runs by default, or any tracking server."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from mlflow.entities import Metric, Param, Run
from mlflow.tracking import MlflowClient

from vlatrack.tracking.artifacts import CopyRule
from vlatrack.tracking.backends.base import (
    Artifact,
    Audit,
    NumberFormat,
    Position,
    RejectedError,
    Rejection,
    RunEvent,
    RunFinish,
    RunStart,
    StoredValue,
    deliver_or_halve,
    metric_name,
    scalar_text,
)
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, sqlite_path, sqlite_uri
from vlatrack.tracking.backends.mlflow.artifacts import (
    is_rotated_away,
    put_artifact,
    put_checkpoint,
    remove_rotated_models,
)
from vlatrack.tracking.backends.mlflow.datasets import put_datasets
from vlatrack.tracking.backends.mlflow.description import first_line, put_description
from vlatrack.tracking.backends.mlflow.evaluations import put_evaluation
from vlatrack.tracking.backends.mlflow.readback import check_ended, check_stored
from vlatrack.tracking.backends.mlflow.runs import (
    METRICS_PER_BATCH,
    Refused,
    batches,
    find_or_create_experiment,
    find_or_create_run,
    find_run,
    hide_digests,
    join_group,
    log_in_batches,
    long_names,
    mlflow_key,
    run_tags,
    tag_key,
    verdicts,
)
from vlatrack.tracking.backends.mlflow.store import (
    bring_artifacts_home,
    check_below,
    create_store,
    forget_connections,
    give_number,
    one_at_a_time,
)
from vlatrack.tracking.backends.mlflow.values import LARGEST_DOUBLE, count_values, stored_values
from vlatrack.tracking.backends.mlflow.views import put_view
from vlatrack.tracking.evaluated import Evaluated
from vlatrack.tracking.health import HEALTH, verdict_of
from vlatrack.tracking.journal.history import REWOUND
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.run_files import RunFiles

RECORDS_AT_ONCE = 500
LONGEST_PARAM = 6000
HEALTH_TAG = "vlatrack.health"
INFINITE = "its values of ±1.797e308 are ±Infinity, which MLflow cannot store"


class MlflowBackend:
    """One run in MLflow, found again by its uid tag. Metric step = training step, timestamps = the journal's.

    MLflow stores the same (key, timestamp, step, value) once, so a replay adds nothing.
    """

    uploads_aside: Literal[True] = True
    numbers = NumberFormat(infinity=LARGEST_DOUBLE)

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
        files = RunFiles(run_dir)
        self._run_dir, self._runs = files.run_dir, files.runs
        self._naming = naming
        self._uri = tracking_uri
        self._experiment = experiment
        self._copy_rule = CopyRule(copy_checkpoints, copy_up_to_mb)
        self._run_id = self._uid = ""
        self._noted: set[str] = set()
        """Tags that say what MLflow does not show of a metric."""

    def open(self, start: RunStart, acknowledged: int) -> Position:
        # Only the shared local store: a server that hangs must not hold up the other backends.
        with one_at_a_time(self._runs / ".mlflow.lock") if self._uri is None else contextlib.nullcontext():
            location = None
            if self._uri is None:
                create_store(self._runs / MLFLOW_STORE)
                location = self._artifact_root.as_uri()
                bring_artifacts_home(self._runs / MLFLOW_STORE, location)
            self._client = MlflowClient(self._store)
            if (database := sqlite_path(self._store)) is not None:
                forget_connections(self._client)
            experiment = find_or_create_experiment(self._client, self._experiment or start.experiment, location)
            run, is_new = find_or_create_run(self._client, experiment, start, first_line(self._run_dir))
        if database is not None:
            give_number(database)
        self._run_id = run.info.run_id
        page = f"{redact(self._store).rstrip('/')}/#/experiments/{experiment}/runs/{self._run_id}"
        self.url = f"vlatrack ui --runs {self._runs}" if self._uri is None else page
        self._uid = start.uid
        return Position(0, 0) if is_new else Position(acknowledged + 1, acknowledged + 1)

    def describe(self, start: RunStart) -> list[Rejection]:
        run = self._client.get_run(self._run_id)
        if run.info.end_time is None or run.info.end_time <= start.t_ms:
            self._client.update_run(self._run_id, status="RUNNING")
            if start.seq > 0:
                put_description(self._client, self._run_id, self._run_dir, "RUNNING")
        if start.group is not None:
            join_group(self._client, run, start.group)
        refused = self._put_params(run, start.params)
        refused += self._put_tags({tag_key(name): value for name, value in start.tags.items()} | self._health())
        hide_digests(self._client, run)
        refused += put_datasets(self._client, run, start.datasets)
        refused += put_view(self._client, run.info.experiment_id, start, self.metric_key)
        return [Rejection(start.seq, what, reason) for what, reason in refused]

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        metrics = [
            Metric(mlflow_key(metric_name(name, self._naming)), value, record.t_ms, record.step or 0)
            for record in records
            for name, value in record.data.items()
        ]
        for batch in batches(metrics, METRICS_PER_BATCH):
            with verdicts(self._client, self._run_id):
                # Newest first: the store keeps the latest value of each key, and so replaces it once a batch.
                self._client.log_batch(self._run_id, metrics=batch[::-1], synchronous=True)
            check_stored(self._client, self._run_id, batch)
        notes = long_names({metric_name(name, self._naming) for record in records for name in record.data})
        for key in {metric.key for metric in metrics if math.isinf(metric.value)}:
            notes[mlflow_key(f"vlatrack.infinite.{key}")] = INFINITE
        if new := {tag: text for tag, text in notes.items() if tag not in self._noted}:
            self._put_tags(new)
            self._noted |= new.keys()
        return []

    def deliver_again(self, records: Iterable[Record], *, at_most: int, next_seq: int) -> list[Rejection]:
        remaining, rejections = iter(records), list[Rejection]()
        while some := list(islice(remaining, RECORDS_AT_ONCE)):
            rejections += deliver_or_halve(self.deliver, some)
        return rejections

    def put_artifact(self, artifact: Artifact) -> None:
        if self._uri is None:
            check_below(str(self._client.get_run(self._run_id).info.artifact_uri), self._artifact_root)
        put_artifact(self._client, self._run_id, artifact, self._copy_rule)

    def alert(self, title: str, text: str, record: Record) -> None:
        self._put_tags({f"vlatrack.alert.{record.seq}": f"{title}: {text}"})

    def event(self, event: RunEvent) -> None:
        """A checkpoint becomes a LoggedModel at its step, with the metrics of that step; its weights stay where they
        are, and MLflow loads them from there. An evaluation gives it more metrics, and the run a dataset. Checkpoints
        that were rotated away have none. A finding about the run's health stands in its description."""
        if (evaluated := Evaluated.of(event)) is not None:
            put_evaluation(
                self._client,
                self._run_id,
                evaluated,
                uid=self._uid,
                run_dir=self._run_dir,
                key_of=self.metric_key,
            )
        if event.name in (HEALTH, REWOUND):
            self._put_tags(self._health())
        if event.name == HEALTH:
            put_description(self._client, self._run_id, self._run_dir, self._client.get_run(self._run_id).info.status)
        if event.name != "checkpoint":
            return
        step, name = event.data.get("step"), event.data.get("name")
        if not isinstance(step, int) or not isinstance(name, str):
            raise RejectedError("a checkpoint event has a step and a name")
        remove_rotated_models(self._client, self._run_id, self._run_dir)
        path = str(self._run_dir / "checkpoints" / name)
        if is_rotated_away(Path(path)):
            return
        identity = f"{self._uid}:{event.seq}"
        root = self._artifact_root if self._uri is None else None
        put_checkpoint(self._client, self._run_id, event.data, identity=identity, path=path, step=step, root=root)

    def finish(self, finish: RunFinish) -> None:
        if finish.reason is not None:
            self._put_tags({"vlatrack.reason": finish.reason})
        self._client.set_terminated(self._run_id, finish.status, finish.t_ms)
        check_ended(self._client, self._run_id, finish.status)
        remove_rotated_models(self._client, self._run_id, self._run_dir)
        put_description(self._client, self._run_id, self._run_dir, finish.status)

    def audit(self, start: RunStart) -> Audit:
        client = self._existing_store()
        run = None if client is None else find_run(client, self._experiment or start.experiment, start.uid)
        if client is None or run is None:
            return Audit()
        latest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        return Audit(run.info.status, len(latest), count_values(client, run.info.run_id), latest=latest)

    def metric_key(self, name: str) -> str:
        return mlflow_key(metric_name(name, self._naming))

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        client = self._existing_store()
        run = None if client is None else find_run(client, self._experiment or start.experiment, start.uid)
        if client is not None and run is not None:
            yield from stored_values(client, run)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _existing_store(self) -> MlflowClient | None:
        """The client would create the local store."""
        return None if self._uri is None and not (self._runs / MLFLOW_STORE).exists() else MlflowClient(self._store)

    @property
    def _artifact_root(self) -> Path:
        """Where the local store puts files."""
        return self._runs / "mlartifacts"

    @property
    def _store(self) -> str:
        return self._uri or sqlite_uri(self._runs / MLFLOW_STORE)

    def _put_params(self, run: Run, params: Mapping[str, object]) -> Refused:
        """Params are immutable in MLflow: what changed since the first start becomes a tag."""
        texts = {mlflow_key(name): scalar_text(value) for name, value in params.items()}
        known = run.data.params
        new = [Param(key, text[:LONGEST_PARAM]) for key, text in texts.items() if key not in known]
        refused = log_in_batches(self._client, self._run_id, params=new)
        tags = {
            mlflow_key(f"vlatrack.changed.{key}"): text
            for key, text in texts.items()
            if known.get(key, text[:LONGEST_PARAM]) != text[:LONGEST_PARAM]
        }
        cut = sorted(key for key, text in texts.items() if len(text) > LONGEST_PARAM)
        if cut:
            tags["vlatrack.truncated_params"] = f"whole in the spec artifact: {', '.join(cut)}"
        return refused + self._put_tags(tags | long_names(params))

    def _health(self) -> dict[str, str]:
        """The verdict as a tag, by which the table of runs can be sorted; none of a run that is not watched."""
        files = RunFiles(self._run_dir)
        return {HEALTH_TAG: verdict_of(files.journal)} if files.health.exists() else {}

    def _put_tags(self, tags: Mapping[str, str]) -> Refused:
        return log_in_batches(self._client, self._run_id, tags=run_tags(tags))

"""vlatrack's runs in MLflow: made once, marked by a uid, found again, and left alone if a person has deleted them."""

import contextlib
import getpass
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from mlflow.entities import Experiment, LifecycleStage, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from vlatrack.tracking.backends.base import Rejected, RemoteDeleted, RunStart

UID_TAG = "vlatrack.uid"
COMMIT_TAG, NO_COMMIT = "vlatrack.commit", "none"
"""Of a run's start; MLflow shows it as the version of the run's source."""
LONGEST_TAG = 8000
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
_SHOWN_AS_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The user interface would otherwise open on its pages for language model applications."""

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most `size`."""
    return (items[at : at + size] for at in range(0, len(items), size))


def source_tags() -> dict[str, str]:
    """Who made a run, as MLflow shows it."""
    return {MLFLOW_USER: getpass.getuser(), MLFLOW_SOURCE_NAME: "vlatrack", MLFLOW_SOURCE_TYPE: "LOCAL"}


def put_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, cut to the length that MLflow allows."""
    for batch in batches([RunTag(key, text[:LONGEST_TAG]) for key, text in tags.items()], PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=batch, synchronous=True)


def runs_with_uid(client: MlflowClient, experiment_id: str, uid: str, *, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """The runs of an experiment with this uid, the earliest first."""
    found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'", view)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def find_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """The id of the experiment; RemoteDeleted if it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, location, tags=_SHOWN_AS_TRAINING))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        found = client.get_experiment_by_name(name)
    _check_experiment(found)
    return str(found.experiment_id)


def find_or_create_run(client: MlflowClient, experiment_id: str, start: RunStart, note: str) -> tuple[Run, bool]:
    """The run, and whether it is new: then it gets the note, which people may change.

    RemoteDeleted if it was deleted: a second one would hide what the first holds.
    """
    found = runs_with_uid(client, experiment_id, start.uid, view=ViewType.ALL)
    if not found:
        tags = {UID_TAG: start.uid, MLFLOW_RUN_NOTE: note, **source_tags()}
        commit = start.tags.get(COMMIT_TAG, NO_COMMIT)
        if commit != NO_COMMIT:
            tags[MLFLOW_GIT_COMMIT] = commit
        return client.create_run(experiment_id, start.t_ms, tags=tags, run_name=start.name), True
    run = next((run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE), found[0])
    _check_run(run)
    return run, False


@contextlib.contextmanager
def verdicts(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Turn what MLflow calls invalid into `Rejected`, unless it is the run that is gone: then nothing is at fault."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        run = client.get_run(run_id)
        _check_experiment(client.get_experiment(run.info.experiment_id))
        _check_run(run)
        raise Rejected(error.message) from error


def _check_experiment(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RemoteDeleted(f"experiment {experiment.name} was deleted in MLflow; restore it there and `vlatrack sync`")


def _check_run(run: Run) -> None:
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RemoteDeleted(
            f"run {run.info.run_name} ({run.info.run_id}) was deleted in MLflow; restore it there and `vlatrack sync`"
        )

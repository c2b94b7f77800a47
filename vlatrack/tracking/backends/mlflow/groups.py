"""Groups of runs in MLflow: one run for each group of an experiment, which the others are children of."""

import time

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from vlatrack.tracking.backends.mlflow.keys import mlflow_key
from vlatrack.tracking.backends.mlflow.runs import UID_TAG, runs_with_uid, source_tags

MOST_LOOKS = 20


def join_group(client: MlflowClient, run: Run, group: str) -> None:
    """Make the run a child of its group's run, which is created if it is not there.

    MLflow cannot create a run only if there is none. Of several, made at the same moment, all choose the earliest and
    move the children of the others there; who has chosen one looks again whether it still is the one.
    """
    experiment, uid = run.info.experiment_id, f"group:{run.info.experiment_id}:{mlflow_key(group)}"
    chosen = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
    for _ in range(MOST_LOOKS):
        parent = _only_parent(client, experiment, uid, group)
        if parent is not None and parent == chosen:
            return
        if parent is not None:
            chosen = parent
            client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, chosen)
    raise ConnectionError(f"the run of the group {group} changes all the time")


def _only_parent(client: MlflowClient, experiment: str, uid: str, group: str) -> str | None:
    """The id of the group's run, after clearing away what is superfluous; None: look again."""
    parents = runs_with_uid(client, experiment, uid)
    if not parents:
        tags = {UID_TAG: uid, **source_tags()}
        client.create_run(experiment, time.time_ns() // 1_000_000, tags=tags, run_name=group)
        return None
    parent, *superfluous = parents
    try:
        for other in superfluous:
            _replace_parent(client, other, parent.info.run_id)
        if parent.info.status == "RUNNING":  # it is a folder, in which nothing runs
            client.set_terminated(parent.info.run_id, "FINISHED")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        return None  # another delivery has just deleted one of them
    return str(parent.info.run_id)


def _replace_parent(client: MlflowClient, old: Run, new_id: str) -> None:
    children = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{old.info.run_id}'"
    while found := client.search_runs([old.info.experiment_id], children):
        for child in found:
            client.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, new_id)
    client.delete_run(old.info.run_id)

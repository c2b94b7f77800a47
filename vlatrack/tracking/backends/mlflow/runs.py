"""vlatrack's runs in MLflow: created once, marked by a uid, found again, grouped, and left alone if a person has
deleted them; and names as MLflow keys."""

import contextlib
import getpass
import hashlib
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from mlflow.entities import Experiment, LifecycleStage, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from vlatrack.tracking.backends.base import COMMIT_TAG, DIGEST_TAGS, RejectedError, RemoteDeletedError, RunStart
from vlatrack.tracking.backends.mlflow.readback import check_named
from vlatrack.tracking.backends.names import escaped, unescaped

UID_TAG = "vlatrack.uid"
MOST_ATTEMPTS = 20
NO_COMMIT = "none"
"""For a commit, which MLflow shows as the version of the run's source."""
LONGEST_TAG = 8000
TOO_LARGE = "error code 413"
"""In what MLflow's client says of the answer of a proxy."""
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
_SHOWN_AS_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""The user interface would otherwise open on its pages for language model applications."""

LONGEST_KEY, LONGEST_RUN_NAME = 250, 250
EMPTY = ":x:"
"""The key of a name without letters; in other keys, a number follows the x."""
_DIGEST = 16
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_/.\- :]|:(?=x)")
_FORBIDDEN_IN_PATHS = re.compile(r"[^A-Za-z0-9_\- :]|:(?=x)")

T = TypeVar("T")


def mlflow_key(name: str) -> str:
    """The key of a name; distinct names have distinct keys. One that would be too long is cut and ends in a digest."""
    if not name:
        return EMPTY
    # MLflow refuses what is no normal relative path ("a//b", "../a", "."): there, dots and slashes are escaped too.
    normal = posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    forbidden = _FORBIDDEN if normal and name != "." else _FORBIDDEN_IN_PATHS
    key = escaped(name, forbidden)
    return key if len(key) <= LONGEST_KEY else f"{key[: LONGEST_KEY - _DIGEST - 1]}:{_digest(name)}"


def long_names(names: Iterable[str]) -> dict[str, str]:
    """Tags that tell the whole of those names whose keys are cut and end in a digest."""
    return {f"vlatrack.name.{_digest(name)}": name for name in names if mlflow_key(name).endswith(f":{_digest(name)}")}


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]


def name_of_mlflow_key(key: str) -> str:
    """The inverse of `mlflow_key`, for keys that are not cut."""
    return "" if key == EMPTY else unescaped(key)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most `size`."""
    return (items[at : at + size] for at in range(0, len(items), size))


def source_tags() -> dict[str, str]:
    """Who made a run, as MLflow shows it."""
    return {MLFLOW_USER: getpass.getuser(), MLFLOW_SOURCE_NAME: "vlatrack", MLFLOW_SOURCE_TYPE: "LOCAL"}


def tag_key(name: str) -> str:
    """The key of a run's tag; those of digests begin as MLflow's own do, which its pages do not show."""
    return f"mlflow.{name}" if name in DIGEST_TAGS else mlflow_key(name)


def tags_of(run: Run) -> dict[str, str]:
    """The tags of a run by their names, without those of MLflow itself."""
    found = {key: text for key, text in run.data.tags.items() if not key.startswith("mlflow.")}
    return found | {name: run.data.tags[tag_key(name)] for name in DIGEST_TAGS if tag_key(name) in run.data.tags}


def hide_digests(client: MlflowClient, run: Run) -> None:
    """Remove the tags of digests that an earlier release has put where MLflow shows them."""
    for name in DIGEST_TAGS:
        if name in run.data.tags:
            client.delete_tag(run.info.run_id, name)


Refused = list[tuple[str, str]]
"""What a tracker will never take, and why."""


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Tags of a run, cut to the length that MLflow allows."""
    return [RunTag(key, text[:LONGEST_TAG]) for key, text in tags.items()]


def log_in_batches(
    client: MlflowClient, run_id: str, *, params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
) -> Refused:
    """Log params or tags; of a batch that MLflow refuses, find the bad ones by halving."""
    refused: Refused = []
    for batch in batches([*params, *tags], PARAMS_PER_BATCH):
        refused += _log_or_halve(client, run_id, batch)
    return refused


def _log_or_halve(client: MlflowClient, run_id: str, batch: "Sequence[Param | RunTag]") -> Refused:
    params = [item for item in batch if isinstance(item, Param)]
    tags = [item for item in batch if isinstance(item, RunTag)]
    try:
        with verdicts(client, run_id):
            client.log_batch(run_id, params=params, tags=tags, synchronous=True)
        check_named(client, run_id, params, tags)
    except RejectedError as verdict:
        if len(batch) == 1:
            return [(f"{'param' if params else 'tag'} {batch[0].key}", str(verdict))]
        half = len(batch) // 2
        return _log_or_halve(client, run_id, batch[:half]) + _log_or_halve(client, run_id, batch[half:])
    return []


def runs_with_uid(client: MlflowClient, experiment_id: str, uid: str, *, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """The runs of an experiment with this uid, the earliest first."""
    found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'", view)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def find_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """The id of the experiment; RemoteDeletedError if it was deleted."""
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

    RemoteDeletedError if it was deleted: a second one would hide what the first holds.
    """
    found = runs_with_uid(client, experiment_id, start.uid, view=ViewType.ALL)
    if not found:
        tags = {UID_TAG: start.uid, MLFLOW_RUN_NOTE: note, **source_tags()}
        commit = start.tags.get(COMMIT_TAG, NO_COMMIT)
        if commit != NO_COMMIT:
            tags[MLFLOW_GIT_COMMIT] = commit
        return client.create_run(experiment_id, start.t_ms, tags=tags, run_name=start.name[:LONGEST_RUN_NAME]), True
    return _present(found), False


def find_run(client: MlflowClient, experiment: str, uid: str) -> Run | None:
    """The run of an experiment with this uid; None if there is none, RemoteDeletedError if it was deleted."""
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else runs_with_uid(client, found.experiment_id, uid, view=ViewType.ALL)
    if not runs:
        return None
    _check_experiment(found)
    return _present(runs)


@contextlib.contextmanager
def verdicts(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Turn what MLflow calls invalid, or a proxy too large, into `RejectedError`, unless the run itself is gone: then
    nothing is at fault."""
    try:
        yield
    except MlflowException as error:
        if TOO_LARGE in str(error):
            raise RejectedError(f"the server takes no request of this size ({error.message})") from error
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        run = client.get_run(run_id)
        _check_experiment(client.get_experiment(run.info.experiment_id))
        _check_run(run)
        raise RejectedError(error.message) from error


def _present(runs: Sequence[Run]) -> Run:
    """The earliest that is not deleted; RemoteDeletedError if all are."""
    run = next((run for run in runs if run.info.lifecycle_stage == LifecycleStage.ACTIVE), runs[0])
    _check_run(run)
    return run


def _check_experiment(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RemoteDeletedError(
            f"experiment {experiment.name} was deleted in MLflow; restore it there and `vlatrack sync`"
        )


def _check_run(run: Run) -> None:
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RemoteDeletedError(
            f"run {run.info.run_name} ({run.info.run_id}) was deleted in MLflow; restore it there and `vlatrack sync`"
        )


def join_group(client: MlflowClient, run: Run, group: str) -> None:
    """Make the run a child of its group's run, which is created if it is not there.

    MLflow cannot create a run only if there is none. Of several, made at the same moment, all choose the earliest and
    move the children of the others there; whoever has chosen one checks again that it still is the one.
    """
    experiment, uid = run.info.experiment_id, f"group:{run.info.experiment_id}:{mlflow_key(group)}"
    chosen = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
    for _ in range(MOST_ATTEMPTS):
        parent = _only_parent(client, experiment, uid, group)
        if parent is not None and parent == chosen:
            return
        if parent is not None:
            chosen = parent
            client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, chosen)
    raise ConnectionError(f"the run of the group {group} keeps changing")


def _only_parent(client: MlflowClient, experiment: str, uid: str, group: str) -> str | None:
    """The id of the group's run, after removing superfluous ones; None: try again."""
    parents = runs_with_uid(client, experiment, uid)
    if not parents:
        tags = {UID_TAG: uid, **source_tags()}
        client.create_run(experiment, time.time_ns() // 1_000_000, tags=tags, run_name=group[:LONGEST_RUN_NAME])
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

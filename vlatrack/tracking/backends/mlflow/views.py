"""The saved view "VLA losses" of an experiment: MLflow's charts page with what the document of the losses says to watch
first, and a runs table with these metrics and with what the runs changed.

MLflow 3.17 keeps a saved view in a tag of the experiment: an envelope in JSON with name, times and the state of the
page, which is JSON as well, zlib-compressed and in base64. A second tag holds the digest of what was written here, so
that a view that a person has changed is told from ours.
"""

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED, ErrorCode
from mlflow.tracking import MlflowClient

from vlatrack.metrics.names import SPLITS, STEP_SLOTS, TRAIN, VAL_IND, VAL_OOD
from vlatrack.tracking.backends.base import RunStart
from vlatrack.tracking.backends.destinations import MLFLOW_VIEW
from vlatrack.tracking.backends.mlflow.runs import Refused

VIEW_TAG, VIEW_NAME = f"mlflow.sharedViewState.{MLFLOW_VIEW}", "VLA losses"
OWN_TAG = "vlatrack.view"
"""Of an experiment: the SHA-256 of the view that vlatrack has written."""

_LOSSES = ("closs", "loss_ct", "z_loss", "loss")
_COMPRESSED = "deflate;"
_WATCHED, _VALIDATION = "watched", "validation"
"""Sections of the page."""
_REFUSALS = {ErrorCode.Name(code) for code in (INVALID_PARAMETER_VALUE, PERMISSION_DENIED)}

KeyOf = Callable[[str], str]


def put_view(client: MlflowClient, experiment_id: str, start: RunStart, key_of: KeyOf) -> Refused:
    """Write the view if the experiment has none, and add the columns of what this run changed unless a person has
    edited it; returns it if the server takes no such tag.

    Args:
        key_of: from the name of a metric to its key.
    """
    tags = client.get_experiment(experiment_id).tags
    stored = tags.get(VIEW_TAG)
    if stored is not None and tags.get(OWN_TAG) != _digest(stored):
        return []
    known = [] if stored is None else _state_of(stored)["selectedColumns"]
    state = view_state(key_of, [*known, *_changed(start)])
    if stored is not None and state == _state_of(stored):
        return []
    view = _envelope(state, created_ms=None if stored is None else json.loads(stored)["createdAt"])
    try:
        client.set_experiment_tag(experiment_id, OWN_TAG, _digest(view))
        client.set_experiment_tag(experiment_id, VIEW_TAG, view)
    except MlflowException as error:
        if error.error_code not in _REFUSALS:
            raise
        return [(f"the view {VIEW_NAME}", error.message)]
    return []


def view_state(key_of: KeyOf, columns: Iterable[str] = ()) -> dict[str, Any]:
    """The state of the charts page; what it does not mention is as in a page that nobody has changed.

    Args:
        columns: further ones of the runs table, behind those of the metrics.
    """
    of_metrics = [f"{TRAIN}_{loss}" for loss in _LOSSES]
    of_metrics += [f"{split}_{loss}" for loss in ("loss_ct", "closs") for split in (VAL_IND, VAL_OOD)]
    first = [f"metrics.`{key_of(name)}`" for name in of_metrics]
    sections = {_WATCHED: VIEW_NAME, _VALIDATION: "Validation losses"}
    return {
        "selectedColumns": list(dict.fromkeys([*first, *columns])),
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": True} for uuid, name in sections.items()
        ],
        "compareRunCharts": list(_charts(key_of)),
        "isAccordionReordered": True,  # else MLflow sorts the sections by name, with its own at the end
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _charts(key_of: KeyOf) -> Iterator[dict[str, Any]]:
    for loss in _LOSSES:
        yield from _chart(_WATCHED, f"{TRAIN}_{loss}", [key_of(f"{TRAIN}_{loss}")])
    for split in SPLITS:
        keys = [key_of(f"{split}_l1_loss_action_{slot}") for slot in reversed(range(STEP_SLOTS))]
        yield from _chart(_WATCHED, f"{split}: L1 of each chunk step", keys)
    for loss in _LOSSES:
        yield from _chart(_VALIDATION, f"val {loss}", [key_of(f"{split}_{loss}") for split in (VAL_IND, VAL_OOD)])


def _chart(section: str, title: str, keys: list[str]) -> Iterator[dict[str, Any]]:
    """A chart of these metrics, and notes that they have none of their own, which MLflow would add."""
    common: dict[str, Any] = {"type": "LINE", "metricSectionId": section, "xAxisKey": "step", "lineSmoothness": 0}
    common |= {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    together = {"metricKey": keys[0], "selectedMetricKeys": keys, "displayName": title}
    yield {"uuid": f"{section}-{title}", "deleted": False, **common, **together}
    for key in keys[1:]:
        yield {"uuid": f"{section}-{key}", "deleted": True, **common, "metricKey": key}


def _changed(start: RunStart) -> Iterator[str]:
    """The columns of the params that the command line of a run set."""
    overrides = f" {start.tags.get('vlatrack.overrides', '')}"
    return (
        f"params.`{name}`" for name in start.params if f" {name}=" in overrides and not name.startswith("tracking.")
    )


def _envelope(state: Mapping[str, Any], created_ms: int | None) -> str:
    now = time.time_ns() // 1_000_000
    text = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), level=9)).decode()
    times = {"createdAt": created_ms or now, "updatedAt": now}
    return json.dumps({"name": VIEW_NAME, **times, "state": f"{_COMPRESSED}{text}"})


def _state_of(view: str) -> dict[str, Any]:
    """The state in a view that `put_view` has written."""
    text = json.loads(view)["state"].removeprefix(_COMPRESSED)
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return state


def _digest(view: str) -> str:
    return hashlib.sha256(view.encode()).hexdigest()

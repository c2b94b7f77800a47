"""What a server has acknowledged is read back, metrics in a sample: a proxy may answer for it, and a full store lose
it. A database that this process writes itself is not asked."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

_HISTORY = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
_MOST_OF_A_STEP = 2500
_log = logging.getLogger(__name__)


def check_stored(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    """Ask a server, in one request or two, for the newest of the metrics that it has just acknowledged;
    ConnectionError if it does not hold them."""
    if not _is_server(client) or not metrics:
        return
    if (lost := _lost(client, run_id, metrics)) is not None:
        raise _not_stored(f"{len(metrics)} values", f"{lost.key} of step {lost.step}")


def check_named(client: MlflowClient, run_id: str, params: Sequence[Param], tags: Sequence[RunTag]) -> None:
    """Ask a server for the params and tags that it has just acknowledged; ConnectionError if it lacks one."""
    if not _is_server(client):
        return
    held = client.get_run(run_id).data
    for what, sent, kept in (("param", params, held.params), ("tag", tags, held.tags)):
        for item in sent:
            if item.key not in kept:
                raise _not_stored(f"{len(sent)} {what}s", f"{what} {item.key}")


def check_ended(client: MlflowClient, run_id: str, status: str) -> None:
    """Ask a server for the end of the run that it has just acknowledged; ConnectionError if it has another one."""
    if _is_server(client) and client.get_run(run_id).info.status != status:
        raise _not_stored("the end of the run", status)


def _is_server(client: MlflowClient) -> bool:
    return bool(client.tracking_uri.startswith("http"))


def _not_stored(acknowledged: str, lost: str) -> ConnectionError:
    return ConnectionError(
        f"the server acknowledged {acknowledged} but does not hold {lost}; is there a proxy before it that answers "
        "itself?"
    )


def _lost(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> Metric | None:
    """One of the metrics that the server does not hold; None as far as can be seen."""
    newest = {metric.key: metric for metric in sorted(metrics, key=_place)}
    held = {metric.key: (metric.step, metric.timestamp) for metric in client.get_run(run_id).data.to_proto().metrics}
    for key, metric in newest.items():
        if key not in held or held[key] < _place(metric):
            return metric
    # The server shows the latest value alone. Where a run went back to an earlier step, ours lies behind it.
    behind = [metric for key, metric in newest.items() if held[key] > _place(metric)]
    return behind[-1] if behind and not _is_in_history(client, run_id, behind[-1]) else None


def _is_in_history(client: MlflowClient, run_id: str, metric: Metric) -> bool:
    """Whether the server lists this value; a server that has no such list is believed."""
    asked = {"run_ids": run_id, "metric_key": metric.key, "start_step": metric.step, "end_step": metric.step}
    answer = http_request(
        get_default_host_creds(client.tracking_uri), _HISTORY, "GET", params=asked | {"max_results": _MOST_OF_A_STEP}
    )
    if answer.status_code != HTTPStatus.OK:
        _log.info("%s: values cannot be read back (%d)", _HISTORY, answer.status_code)
        return True
    listed = answer.json().get("metrics", [])
    # The server thins out a longer list.
    return len(listed) >= _MOST_OF_A_STEP or any(int(found["timestamp"]) == metric.timestamp for found in listed)


def _place(metric: Metric) -> tuple[int, int]:
    return metric.step, metric.timestamp

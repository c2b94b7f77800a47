"""What a server has acknowledged is read back in a sample: a proxy may answer for it, and a full store lose it."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

_HISTORY = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
_MOST_OF_A_STEP = 2500
_log = logging.getLogger(__name__)


def check_stored(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    """Ask a server, in one request or two, for the newest of the metrics that it has just acknowledged.

    ConnectionError if it does not hold them. A database that this process writes itself is not asked.
    """
    if not client.tracking_uri.startswith("http") or not metrics:
        return
    if (lost := _lost(client, run_id, metrics)) is not None:
        raise ConnectionError(
            f"the server acknowledged {len(metrics)} values but does not hold {lost.key} of step {lost.step}; "
            "is there a proxy before it that answers itself?"
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

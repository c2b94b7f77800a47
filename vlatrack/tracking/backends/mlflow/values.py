"""Which metric values MLflow holds: all of them, page by page, or a sample after a batch."""

import contextlib
import logging
import math
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.entities import Run
from mlflow.store.tracking import GET_METRIC_HISTORY_MAX_RESULTS
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url

from vlatrack.tracking.backends.base import StoredValue

ROWS_PER_PAGE = 10_000
"""Of the database itself: other runs cannot write while one is read."""
LARGEST_DOUBLE = 1.7976931348623157e308
"""What MLflow stores for an infinity."""

_COLUMNS = {"run_uuid", "key", "timestamp", "step", "value", "is_nan"}
_PAGE = (
    "SELECT rowid, key, timestamp, step, value, is_nan FROM metrics "
    "WHERE run_uuid = ? AND rowid > ? ORDER BY rowid LIMIT ?"
)
_log = logging.getLogger(__name__)


def stored_values(client: MlflowClient, run: Run) -> Iterator[StoredValue]:
    """All metric values of a run; a database in a file is read past MLflow, which would take a hundred times longer."""
    database = _database(client.tracking_uri)
    if database is None:
        yield from _values_of_server(client, run)
    else:
        with contextlib.closing(database):
            yield from _values_of_database(database, run.info.run_id)


def count_values(client: MlflowClient, run_id: str) -> int | None:
    """How many metric values a run has; None where only reading them all would tell."""
    database = _database(client.tracking_uri)
    if database is None:
        return None
    with contextlib.closing(database):
        return int(database.execute("SELECT COUNT(*) FROM metrics WHERE run_uuid = ?", (run_id,)).fetchone()[0])


def _database(uri: str) -> sqlite3.Connection | None:
    """The SQLite database behind a tracking URI, for reading; None if there is none, or it is of a later MLflow."""
    if not uri.startswith("sqlite:"):
        return None
    path = make_url(uri).database
    if not path or not Path(path).is_file():
        return None
    database = sqlite3.connect(f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True, timeout=60)
    columns = {row[1] for row in database.execute("PRAGMA table_info(metrics)")}
    if not columns >= _COLUMNS:
        _log.warning("%s: a schema of MLflow that is not known here; its values are read through MLflow", path)
        database.close()
        return None
    return database


def _values_of_database(database: sqlite3.Connection, run_id: str) -> Iterator[StoredValue]:
    last = -1
    while page := database.execute(_PAGE, (run_id, last, ROWS_PER_PAGE)).fetchall():
        last = page[-1][0]
        for _, key, t_ms, step, value, is_nan in page:
            yield StoredValue(key, t_ms, step, math.nan if is_nan else value)


def _values_of_server(client: MlflowClient, run: Run) -> Iterator[StoredValue]:
    # The client's own method puts the whole history of a metric into one list.
    read_page = partial(client._tracking_client.store.get_metric_history, max_results=GET_METRIC_HISTORY_MAX_RESULTS)
    for key in run.data.metrics:
        token: str | None = None
        while True:
            page: Any = read_page(run.info.run_id, key, page_token=token)
            for metric in page:
                yield StoredValue(key, metric.timestamp, metric.step, metric.value)
            if not page.token or page.token == token:
                break
            token = page.token

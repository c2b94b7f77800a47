"""The SQLite store of MLflow: created once, told from another one that was at its path, and at home where it lies."""

import contextlib
import re
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.tracking import MlflowClient

from vlatrack.tracking.backends.base import RejectedError
from vlatrack.tracking.backends.destinations import sqlite_uri, store_id
from vlatrack.tracking.lock import FileLock

UNFINISHED = ".unfinished"
LOCK_TIMEOUT_S = 90.0
"""Longer than a process on another host that is gone is taken for alive."""
OBJECT_STORES = ("s3", "gs", "wasb", "wasbs", "abfs", "abfss", "r2", "oss", "b2")
"""Whose libraries sign requests, and never send a login."""
_BUSY_TIMEOUT_S = 30.0
_ARTIFACT_ROOT = re.compile(r"(file://.*/mlartifacts)(/\d+)?")
"""Of an experiment that vlatrack made, or the server of `vlatrack ui`, which gives each a folder of its own."""


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Runs that start together must not both create the database, or the same experiment."""
    lock = FileLock.acquire(path, timeout_s=LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        lock.release()


def create_store(path: Path) -> None:
    """Create the database under a temporary name: after a kill or a full disk in between, it would stay broken."""
    if not path.exists():
        for left in path.parent.glob(f".{path.name}.*{UNFINISHED}*"):
            left.unlink()
        # A name for each attempt: MLflow keeps the connections of a failed one, and would go on with its file.
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
        MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
        unfinished.replace(path)


def forget_connections(client: MlflowClient) -> None:
    """Let MLflow open the database's file again: it keeps its connections for as long as this process lives, also to a
    file that is deleted or replaced meanwhile."""
    client._tracking_client.store.engine.dispose()


def give_number(path: Path) -> None:
    """Give the database the number that `destinations.store_id` reads, unless it has one."""
    if store_id(path) != 0:
        return
    with _transaction(path) as database:
        if database.execute("PRAGMA application_id").fetchone() == (0,):  # no other process was faster
            database.execute(f"PRAGMA application_id = {secrets.randbelow(2**31 - 1) + 1}")


def bring_artifacts_home(path: Path, root: str) -> None:
    """Point every experiment and run of a runs folder's own store to the artifacts beside it, `root`: the folder may
    have been moved or copied, and what is stored from now on must not go to its old place."""
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as database:
        locations = [str(location) for (location,) in database.execute("SELECT artifact_location FROM experiments")]
    found = [_ARTIFACT_ROOT.fullmatch(location) for location in locations]
    for old in {match[1] for match in found if match is not None} - {root}:
        with _transaction(path) as database:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
            ):
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608  # our own names
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (root, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def check_below(uri: str, root: Path) -> None:
    """RejectedError if the runs folder's own store, which anybody may have made, would have files of a run written
    elsewhere on this disk than below `root`, or sent to a server with this user's login."""
    parts = urlsplit(uri)
    if parts.scheme in OBJECT_STORES:
        return
    place = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    if parts.scheme not in ("", "file") or not place.resolve().is_relative_to(root.resolve()):
        raise RejectedError(f"the store of this runs folder puts files at {uri}, which is not below {root}")


@contextlib.contextmanager
def _transaction(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield database
        database.execute("COMMIT")

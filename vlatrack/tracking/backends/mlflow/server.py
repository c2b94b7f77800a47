"""MLflow's own server on the store of a runs folder."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, MLFLOW_VIEW, sqlite_uri

AS_TRAINING = "workflowType=machine_learning"
"""Without it, MLflow opens on its pages for language model applications; its own links to an experiment lack it."""
VIEW = f"viewStateShareKey={MLFLOW_VIEW}&compareRunsMode=CHART"
"""The charts of the saved view of an experiment; without it MLflow shows the documented metrics below all groups."""

_STARTING_S = 120.0
_ENDING_S = 5.0
_MOST_SHOWN = 5
_WITH_RUNS = (
    "SELECT experiments.experiment_id, experiments.name FROM experiments JOIN runs USING (experiment_id) "
    "WHERE experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active' "
    "GROUP BY experiments.experiment_id ORDER BY MAX(runs.start_time) DESC LIMIT ?"
)
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def checked_store(runs: Path) -> Path:
    """The MLflow store of a runs folder; TrackerError if there is none, or it is no database."""
    store = runs / MLFLOW_STORE
    if not store.is_file():
        raise TrackerError(
            f"{store}: no such store; a run with `tracking: {{backends: [{{kind: mlflow}}]}}` creates it"
        )
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT COUNT(*) FROM sqlite_master")
    except sqlite3.Error as error:
        raise TrackerError(f"{store}: cannot be read ({error}); is it the MLflow store of your runs?") from error
    return store


def newest_experiments(store: Path) -> list[tuple[int, str]]:
    """Number and name of the experiments in a store that were run last; none of a store with another schema."""
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
        try:
            return list(database.execute(_WITH_RUNS, (_MOST_SHOWN,)))
        except sqlite3.OperationalError:
            return []


class MlflowServer:
    """A server in a process group of its own, which ends with `stop`."""

    def __init__(self, store: Path, host: str, port: int) -> None:
        """`port` is free."""
        artifacts = (store.parent / "mlartifacts").as_uri()
        place = ["--backend-store-uri", sqlite_uri(store), "--default-artifact-root", artifacts]
        self.command = [
            *(sys.executable, "-m", "mlflow", "server", *place),
            *("--host", host, "--port", str(port), "--workers", "1"),
        ]
        self.address = f"http://{host}:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # With PYTHONSAFEPATH, a file mlflow.py in the current folder is not MLflow.
        environment = os.environ | _QUIET | {"PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Until it ends by itself; returns its exit status."""
        assert self._process is not None, "started"
        return self._process.wait()

    def wait_until_it_answers(self) -> None:
        """Raises TrackerError if it ends, or does not listen within two minutes."""
        assert self._process is not None, "started"
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        give_up = time.monotonic() + _STARTING_S
        while time.monotonic() < give_up:
            if (status := self._process.poll()) is not None:
                raise TrackerError(f"MLflow ended with exit status {status}; `vlatrack ui --mlflow` shows why")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            time.sleep(0.1)
        raise TrackerError(f"MLflow does not answer at {self.address}; try `vlatrack ui --mlflow`")

    def stop(self) -> None:
        """End it with its workers, which outlive their parent and would keep the port."""
        if self._process is None:
            return
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, signum)
            except ProcessLookupError:
                break  # all processes have ended
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


class MlflowOnDemand:
    """Starts MLflow when somebody wants to see it: it takes half a gigabyte."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._server: MlflowServer | None = None

    def address(self, experiment: str | None) -> str:
        """Where MLflow shows this experiment, or the newest one.

        Raises:
            TrackerError: the runs folder has no store, or MLflow does not start.
        """
        store = checked_store(self._runs)
        with self._lock:
            if self._server is None or not self._server.is_running:
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    port = int(listener.getsockname()[1])
                server = MlflowServer(store, "127.0.0.1", port)
                server.start()
                try:
                    server.wait_until_it_answers()
                except BaseException:
                    server.stop()
                    raise
                self._server = server
        found = newest_experiments(store)
        number = next((number for number, name in found if name == experiment), found[0][0] if found else None)
        experiments = f"{self._server.address}/#/experiments"
        if number is None:
            return f"{experiments}?{AS_TRAINING}"
        return f"{experiments}/{number}/runs?{AS_TRAINING}&{VIEW}"

    def __enter__(self) -> "MlflowOnDemand":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._server is not None:
            self._server.stop()

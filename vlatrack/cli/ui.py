"""`vlatrack ui`: the MLflow user interface on the store that the runs share."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, MLFLOW_VIEW, sqlite_uri
from vlatrack.tracking.printable import printable
from vlatrack.tracking.run_files import resolved_path

LAST_PORT = 65535
_ENDING_S = 5.0
_AS_TRAINING = "workflowType=machine_learning"
"""Without it, MLflow opens on its pages for language model applications; its own links to an experiment lack it."""
_VIEW = f"viewStateShareKey={MLFLOW_VIEW}&compareRunsMode=CHART"
"""The charts of the saved view of an experiment; without it MLflow shows the documented metrics below all groups."""
_MOST_SHOWN = 5
_WITH_RUNS = (
    "SELECT experiments.experiment_id, experiments.name FROM experiments JOIN runs USING (experiment_id) "
    "WHERE experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active' "
    "GROUP BY experiments.experiment_id ORDER BY MAX(runs.start_time) DESC LIMIT ?"
)


def ui(
    runs: Annotated[Path, typer.Option(help="folder that holds mlflow.db")] = Path("runs"),
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; another one if it is taken")] = 5000,
) -> None:
    """Open the MLflow user interface on the runs in a folder; Ctrl-C ends it."""
    store = resolved_path(runs) / MLFLOW_STORE
    if not store.is_file():
        raise TrackerError(
            f"{store}: no such store; a run with `tracking: {{backends: [{{kind: mlflow}}]}}` creates it"
        )
    _check_store(store)
    port = _free_port(host, port)
    experiments = f"http://{host}:{port}/#/experiments"
    typer.echo(f"MLflow on {store}: {experiments}?{_AS_TRAINING}  (Ctrl-C ends it)")
    for number, name in newest_experiments(store):
        typer.echo(f"{printable(name)}: {experiments}/{number}/runs?{_AS_TRAINING}&{_VIEW}")
    raise typer.Exit(_serve(_server_command(store, host, port)))


def _server_command(store: Path, host: str, port: int) -> list[str]:
    artifacts = (store.parent / "mlartifacts").as_uri()
    place = ["--backend-store-uri", sqlite_uri(store), "--default-artifact-root", artifacts]
    return [sys.executable, "-m", "mlflow", "server", *place, "--host", host, "--port", str(port), "--workers", "1"]


def _check_store(store: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT COUNT(*) FROM sqlite_master")
    except sqlite3.Error as error:
        raise TrackerError(f"{store}: cannot be read ({error}); is it the MLflow store of your runs?") from error


def newest_experiments(store: Path) -> list[tuple[int, str]]:
    """Number and name of the experiments in a store that were run last; none of a store with another schema."""
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
        try:
            return list(database.execute(_WITH_RUNS, (_MOST_SHOWN,)))
        except sqlite3.OperationalError:
            return []


def _free_port(host: str, wanted: int) -> int:
    if not 0 <= wanted <= LAST_PORT:
        raise TrackerError(f"--port {wanted}: no such port; choose one from 1024 to {LAST_PORT}, or 0 for any free one")
    for port in (wanted, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except PermissionError as error:
                raise TrackerError(f"--port {port}: {error.strerror}; choose one above 1023") from error
            except OSError as error:
                reason = error
                continue
            return int(listener.getsockname()[1])
    raise TrackerError(f"cannot listen on {host}: {reason}; choose another --host")


def _serve(command: list[str]) -> int:
    """Run the server in its own process group, and end the whole group when this process ends."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet["PYTHONSAFEPATH"] = "1"  # a file mlflow.py in the current folder is not MLflow
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it outlives its terminal
        signal.signal(signal.SIGHUP, _interrupt)
    server = subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end_group(server)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    # MLflow's workers outlive their parent and keep the port, so the whole group gets the signal.
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signum)
        except ProcessLookupError:
            break  # all processes have ended
        try:
            server.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            continue
    server.wait()

"""`vlatrack ui`: the dashboard of a runs folder, or MLflow's user interface on the store that the runs share."""

import os
import re
import secrets
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from vlatrack.errors import TrackerError
from vlatrack.tracking.printable import printable
from vlatrack.tracking.run_files import resolved_path

LAST_PORT = 65535
REFUSED_BY_BROWSERS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6697, 10080}
)
"""Ports above 1023 on the list of bad ports in the Fetch standard: Chrome and Firefox open no page there."""
_ALL = ("0.0.0.0", "::")  # noqa: S104 (compared, not bound)
_JOURNAL = "journal.jsonl"
TOKEN = "VLATRACK_TOKEN"  # noqa: S105 (the name of a variable)


def ui(
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; another one if it is taken.")] = 5000,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Serve MLflow's user interface instead.")] = False,
) -> None:
    """Serve a live dashboard of all runs in a folder; Ctrl-C ends it.

    It shows what the journals of the runs say now, while they train, and needs no tracker. MLflow is one click away.
    With a --host that others reach, a browser needs the token that is printed, or yours from VLATRACK_TOKEN.

    Examples:

    [bold]vlatrack ui[/bold]

    [bold]vlatrack ui --runs /data/runs --port 8080[/bold]

    [bold]vlatrack ui --host 0.0.0.0[/bold]

    [bold]vlatrack ui --mlflow[/bold]
    """
    folder = resolved_path(runs)
    if mlflow:
        raise typer.Exit(_serve_mlflow(folder, host, port))
    _check_runs(folder)
    from vlatrack.reports.dashboard.server import is_loopback, serve
    from vlatrack.tracking.backends.mlflow.server import MlflowOnDemand

    token = None if is_loopback(host) else _token()
    # One that was given is known, and would stay in the log of a container or a job.
    shown_token = f"${TOKEN}" if os.environ.get(TOKEN) else token
    with _listener(host, port) as listener, MlflowOnDemand(folder) as on_demand:
        shown_host = socket.gethostname() if host in _ALL else f"[{host}]" if ":" in host else host
        query = "" if token is None else f"?token={shown_token}"
        shown = f"http://{shown_host}:{listener.getsockname()[1]}/{query}"
        typer.echo(f"dashboard of {printable(str(folder))}: {shown}  (Ctrl-C ends it)")
        serve(folder, listener, host=host, token=token, mlflow=on_demand.address if token is None else None)


def _check_runs(folder: Path) -> None:
    """Raises TrackerError for what is no runs folder, above all for the folder of one run or of one experiment."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise TrackerError(f"{folder}: {what}; give the folder that holds the runs with --runs")
    try:
        has_runs = any((inside / _JOURNAL).is_file() for inside in folder.iterdir())
    except OSError as error:
        raise TrackerError(f"{folder}: {error.strerror}; give a folder that you may read with --runs") from error
    if (folder / _JOURNAL).is_file():
        raise TrackerError(
            f"{folder}: a single run; give the folder that holds the experiments: {folder.parent.parent}"
        )
    if has_runs:
        raise TrackerError(f"{folder}: a single experiment; give the folder above it with --runs: {folder.parent}")


def _token() -> str:
    """The user's, or a new one; TrackerError for one that can be guessed, or would be another in an address."""
    token = os.environ.get(TOKEN)
    if not token:
        return secrets.token_urlsafe(24)
    if re.fullmatch(r"[A-Za-z0-9._~-]{12,200}", token) is None:
        raise TrackerError(f"{TOKEN}: give at least 12 letters, digits or any of ._~- , or leave it out: one is made")
    return token


def _serve_mlflow(runs: Path, host: str, port: int) -> int:
    from vlatrack.tracking.backends.mlflow.server import (
        AS_TRAINING,
        VIEW,
        MlflowServer,
        checked_store,
        newest_experiments,
    )

    store = checked_store(runs)
    with _listener(host, port) as listener:
        port = int(listener.getsockname()[1])
    server = MlflowServer(store, host, port)
    experiments = f"{server.address}/#/experiments"
    typer.echo(f"MLflow on {printable(str(store))}: {experiments}?{AS_TRAINING}  (Ctrl-C ends it)")
    for number, name in newest_experiments(store):
        typer.echo(f"{printable(name)}: {experiments}/{number}/runs?{AS_TRAINING}&{VIEW}")
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it outlives its terminal
        signal.signal(signal.SIGHUP, _interrupt)
    server.start()
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()


def _listener(host: str, wanted: int) -> socket.socket:
    """A listening socket on the wanted port, or another one if that is taken."""
    if not 0 <= wanted <= LAST_PORT:
        raise TrackerError(f"--port {wanted}: no such port; choose one from 1024 to {LAST_PORT}, or 0 for any free one")
    if wanted in REFUSED_BY_BROWSERS:
        raise TrackerError(
            f"--port {wanted}: browsers refuse to open a page there; choose another, such as {wanted + 20}"
        )
    for port in (wanted, 0):
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family)
        except OSError as error:
            raise TrackerError(f"--host {host}: {error.strerror}; choose another one") from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            if port != wanted:
                typer.echo(f"port {wanted} is taken, so another one is used", err=True)
            return listener
        except PermissionError as error:
            listener.close()
            raise TrackerError(f"--port {port}: {error.strerror}; choose one above 1023") from error
        except OSError as error:
            listener.close()
            reason = error
    raise TrackerError(f"cannot listen on {host}: {reason}; choose another --host")


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt

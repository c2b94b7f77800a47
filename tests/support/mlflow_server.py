"""A real MLflow server on 127.0.0.1 that can be killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def wait_until(happened: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait for what another process does; AssertionError if it does not."""
    give_up = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < give_up, f"{what}: not in {timeout_s:.0f} s"
        time.sleep(0.01)


class MlflowServer:
    """A real `mlflow server`, on SQLite or the database at `store_uri`, that can be killed with all its workers and
    started again on its port."""

    def __init__(self, folder: Path, store_uri: str | None = None) -> None:
        self.store = folder / "mlflow.db"
        self.artifacts = folder / "artifacts"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        uri = store_uri or f"sqlite:///{self.store}"
        place = ["--backend-store-uri", uri, "--artifacts-destination", str(self.artifacts)]
        listen = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        self._command = [sys.executable, "-m", "mlflow", "server", *place, *listen]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, "the MLflow server answers", 120)

    def kill(self) -> None:
        assert self._process is not None, "start it first"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

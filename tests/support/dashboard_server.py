"""A dashboard that this process serves."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from vlatrack.reports.dashboard.app import dashboard
from vlatrack.reports.dashboard.server import DashboardServer
from vlatrack.reports.dashboard.watch import RunsWatcher


@contextmanager
def served(runs: Path, *, port: int = 0, **options: Any) -> Iterator[str]:
    """The address of a dashboard of this folder."""
    watcher = RunsWatcher(runs)
    watcher.start()
    with socket.create_server(("127.0.0.1", port)) as listener:
        app = dashboard(watcher, hosts=frozenset({"127.0.0.1"}), **options)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = DashboardServer(config, watcher)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            watcher.stop()

"""Serves the dashboard of a runs folder until a signal ends it."""

import ipaddress
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from vlatrack.reports.dashboard.app import dashboard
from vlatrack.reports.dashboard.watch import RunsWatcher

_HERE = frozenset({"127.0.0.1", "localhost", "::1"})
_LETS_GO_S = 1


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DashboardServer(uvicorn.Server):
    """Ends the streams of changes before it waits for what is still being answered."""

    def __init__(self, config: uvicorn.Config, watcher: RunsWatcher) -> None:
        super().__init__(config)
        self._watcher = watcher

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watcher.end()
        await super().shutdown(sockets)


def serve(
    runs: Path,
    listener: socket.socket,
    *,
    host: str,
    token: str | None,
    mlflow: Callable[[str | None], str] | None,
) -> None:
    """Serve on a socket that is bound and listens; returns after SIGINT or SIGTERM.

    Args:
        host: what the socket is bound to.
        token: as for `dashboard`.
    """
    names = _HERE if is_loopback(host) else _HERE | {host, socket.gethostname(), socket.getfqdn()} | _addresses(host)
    watcher = RunsWatcher(runs)
    watcher.start()
    try:
        app = dashboard(watcher, hosts=frozenset(name.lower() for name in names), token=token, mlflow=mlflow)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LETS_GO_S, server_header=False
        )
        server = DashboardServer(config, watcher)
        _end_with_signals(server)
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has ended in order, and gives the signal on
        return
    finally:
        watcher.stop()


def _end_with_signals(server: uvicorn.Server) -> None:
    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    def leave(signum: int, frame: FrameType | None) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it outlives its terminal
        signal.signal(signal.SIGHUP, leave)


def _addresses(host: str) -> set[str]:
    """The addresses of this machine, if the server listens on all of them."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        return set()
    import psutil

    return {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}

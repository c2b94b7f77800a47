"""A small HTTP proxy on 127.0.0.1 that stands before a tracker's server and fails when told to."""

import contextlib
import http.client
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, Literal
from urllib.parse import urlsplit

FaultKind = Literal["refuse", "hang", "cut", "cut_upload", "status", "slow", "throttle"]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_CHUNK, _SLOW_CHUNK, _REMEMBERED = 1 << 16, 1 << 13, 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """`refuse` resets the connection, `hang` says nothing for `seconds` and then resets it, `cut` lets the server
    store the request and resets before the answer, `cut_upload` resets both sides when `after_bytes` of the request's
    body have been passed on, `status` answers with that number instead of the server, `slow`
    answers `seconds` late, `throttle` takes `bytes_per_s` of the request's body."""

    kind: FaultKind
    status: int = 500
    seconds: float = 1.0
    after_bytes: int = 0
    bytes_per_s: int = 0
    text: str = "a fault"


class FaultProxy:
    """Use as `with FaultProxy(upstream_url) as proxy:`; `proxy.url` takes the place of the server's address."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.fault: Fault | None = None
        """What happens to requests that begin now; None: they are passed on."""
        self.script: deque[Fault | None] = deque()
        """What happens to the next requests, one each, before `fault` counts again."""
        self.choose: Callable[[str, str], Fault | None] = lambda method, path: None
        """Asked first, with method and path, what happens to a request."""
        self.answered: Callable[[str, bytes], None] | None = None
        """Called with path and body (its first MiB) of each request after the server answered and before the client
        gets to know."""
        self.counts: Counter[str] = Counter()
        """Requests by what happened to them: `passed`, or the kind of the fault."""
        self.ending = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def next_fault(self, method: str, path: str) -> Fault | None:
        """What happens to the request that begins now."""
        fault = self.choose(method, path) or (self.script.popleft() if self.script else self.fault)
        self.counts[fault.kind if fault else "passed"] += 1
        return fault

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def _handle(self) -> None:
        fault = self.owner.next_fault(self.command, self.path)
        body = _Body(self.rfile, int(self.headers.get("Content-Length") or 0))
        match fault:
            case Fault("refuse"):
                body.drop()
                return self._reset()
            case Fault("hang", seconds=seconds):
                body.drop()
                self.owner.ending.wait(seconds)
                return self._reset()
            case Fault("status", status=status, text=text):
                body.drop()
                return self._answer(status, [("Content-Type", "text/plain")], text.encode())
            case Fault("slow", seconds=seconds):
                self.owner.ending.wait(seconds)
            case Fault("cut_upload", after_bytes=limit):
                body.limit = limit
            case Fault("throttle", bytes_per_s=rate):
                body.pause_s = _SLOW_CHUNK / rate
            case _:
                pass
        try:
            status, headers, answer = self._ask(body)
        except OSError:  # the server is down, so is the proxy; or the upload was cut
            return self._reset()
        if self.owner.answered is not None:
            self.owner.answered(self.path, bytes(body.beginning))
        if fault is not None and fault.kind == "cut":
            return self._reset()
        return self._answer(status, headers, answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _ask(self, body: "_Body") -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        with contextlib.closing(
            http.client.HTTPConnection(*self.owner.upstream, timeout=60, blocksize=_CHUNK)
        ) as server:
            if body.length:
                headers["Content-Length"] = str(body.length)
            server.request(self.command, self.path, body if body.length else b"", headers)
            answer = server.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"server", "date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _Body:
    """A request's body on its way through, as the file that http.client reads it from; it need not fit into memory."""

    def __init__(self, source: BufferedIOBase, length: int) -> None:
        self.length = length
        self.limit = length
        """After so many bytes the connection is cut."""
        self.beginning = bytearray()
        self.pause_s = 0.0
        """After each of its small parts, where it is taken slowly."""
        self._source = source
        self._passed = 0

    def read(self, size: int = _CHUNK) -> bytes:
        if self._passed >= self.limit < self.length:
            raise ConnectionError("the upload is cut")
        if self.pause_s:
            time.sleep(self.pause_s)
            size = min(size, _SLOW_CHUNK)
        chunk = self._source.read(min(size, self.limit - self._passed))
        if not chunk and self._passed < self.limit:
            raise ConnectionError("the client went away")
        self._passed += len(chunk)
        self.beginning += chunk[: max(0, _REMEMBERED - len(self.beginning))]
        return chunk

    def drop(self) -> None:
        while self._passed < self.limit:
            self.read()

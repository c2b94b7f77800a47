"""A server of openpi's protocol that is not vlatrack's, in this process, on a free port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.server import ServerConnection, serve

from vlatrack.serving.codec import pack_openpi, unpack, with_arrays

Answer = Callable[[dict[str, Any]], dict[str, Any] | str | None]
"""What is said to a request: a map; or a text, after which the connection is closed, as openpi's server does when its
policy fails; None: it is only closed."""


class ForeignServer:
    """Remembers what it was asked."""

    def __init__(self, answer: Answer, metadata: dict[str, Any]) -> None:
        self.answer, self.metadata = answer, metadata
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.address = ""

    def converse(self, connection: ServerConnection) -> None:
        self.keys.append(connection.request.headers.get("Authorization"))
        connection.send(pack_openpi(self.metadata))
        for frame in connection:
            self.requests.append(with_arrays(unpack(frame)))
            said = self.answer(self.requests[-1])
            if isinstance(said, dict):
                connection.send(pack_openpi(said))
                continue
            if said is not None:
                connection.send(said)
            connection.close(1011, "see the last message")


@contextmanager
def foreign_server(answer: Answer, metadata: dict[str, Any] | None = None) -> Iterator[ForeignServer]:
    """As long as the block lasts."""
    found = ForeignServer(answer, metadata or {})
    with serve(found.converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        found.address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(20)


def to_the_right(request: dict[str, Any]) -> dict[str, Any]:
    """Two steps of half a unit."""
    return {"actions": np.tile(np.float32([0.5, 0]), (2, 1)), "policy_timing": {"infer_ms": 1.0}}

"""A server of openpi's protocol that is not vlatrack's, in this process, on a free port."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from served import beside
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

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

    async def converse(self, connection: ServerConnection) -> None:
        self.keys.append(connection.request.headers.get("Authorization"))
        with suppress(ConnectionClosed):  # the client is gone, or was told to go
            await connection.send(pack_openpi(self.metadata))
            async for frame in connection:
                self.requests.append(with_arrays(unpack(frame)))
                said = self.answer(self.requests[-1])
                if isinstance(said, dict):
                    await connection.send(pack_openpi(said))
                    continue
                if said is not None:
                    await connection.send(said)
                await connection.close(1011, "see the last message")


@contextmanager
def foreign_server(answer: Answer, metadata: dict[str, Any] | None = None) -> Iterator[ForeignServer]:
    """As long as the block lasts."""
    found = ForeignServer(answer, metadata or {})
    with beside(lambda: serve(found.converse, "127.0.0.1", 0, compression=None, max_size=None)) as server:
        (port,) = (socket.getsockname()[1] for socket in server.sockets)
        found.address = f"ws://127.0.0.1:{port}"
        yield found


def to_the_right(request: dict[str, Any]) -> dict[str, Any]:
    """Two steps of half a unit."""
    return {"actions": np.tile(np.float32([0.5, 0]), (2, 1)), "policy_timing": {"infer_ms": 1.0}}

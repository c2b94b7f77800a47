"""openpi's protocol: the server sends its metadata, then answers each observation with a whole chunk."""

import time
from typing import Any

from websockets.asyncio.server import ServerConnection

from vlatrack.errors import ProtocolError, VlatrackError
from vlatrack.serving.codec import beside, binary, pack_openpi, unpack, with_arrays
from vlatrack.serving.service import Memory, Service

INTERNAL_ERROR = 1011


class OpenpiConversation:
    """One connection."""

    def __init__(self, connection: ServerConnection, service: Service) -> None:
        self._connection, self._service = connection, service
        self._memory = Memory(service.interface, service.fps)
        self._previous_s: float | None = None

    async def hold(self, first: str | bytes | None = None) -> None:
        """Until the client leaves or makes a mistake, which it is told before the connection is closed.

        Args:
            first: a frame that the client has sent already.
        """
        await self._connection.send(pack_openpi(self._service.metadata))
        try:
            if first is not None:
                await self._answer(first)
            async for frame in self._connection:
                await self._answer(frame)
        except VlatrackError as error:
            self._service.latencies.refused += 1
            await self._connection.send(str(error))
            await self._connection.close(INTERNAL_ERROR, "see the last message")

    async def _answer(self, frame: str | bytes) -> None:
        start = time.perf_counter()
        request = await beside(_read, binary(frame))
        reply = await self._reply(request, start)
        if self._previous_s is not None:
            reply["server_timing"]["prev_total_ms"] = self._previous_s * 1e3
        await self._connection.send(pack_openpi(reply))
        self._previous_s = time.perf_counter() - start
        self._service.latencies.add_request(self._previous_s)

    async def _reply(self, request: Any, start: float) -> dict[str, Any]:
        seen = self._service.reader.read(request)
        if request.get("reset") is True:  # the protocol has no beginning of an episode, but a client of ours says so
            self._memory.forget()
        self._memory.add(seen)
        chunk = await self._service.worker.chunk(self._memory.frames)
        return {
            "actions": chunk.actions,
            "server_timing": {"infer_ms": (time.perf_counter() - start) * 1e3},
            "policy_timing": {"infer_ms": chunk.seconds * 1e3},
        }


def _read(frame: bytes) -> Any:
    request = with_arrays(unpack(frame))
    if isinstance(request, dict) and request.get("type") == "hello" and "seq" in request:
        raise ProtocolError("frame: is a hello of vla-eval, and came late; connect to the path /vla-eval")
    return request

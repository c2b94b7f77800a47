"""vla-eval's protocol: numbered messages, episodes with a beginning and an end, and an action for each observation.

The server keeps the rest of a chunk until its actions are due, and sees every frame, so that its history is that of the
environment's steps.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection

from vlatrack.errors import ProtocolError, VlatrackError
from vlatrack.serving.codec import beside, binary, pack_vla_eval, unpack, with_arrays
from vlatrack.serving.service import Memory, Service

PROTOCOL_VERSION = 1
_log = logging.getLogger(__name__)


class VlaEvalConversation:
    """One connection."""

    def __init__(self, connection: ServerConnection, service: Service) -> None:
        self._connection, self._service = connection, service
        self._memory = Memory(service.interface, service.fps)
        self._due: deque[NDArray[np.float64]] = deque()

    async def hold(self, first: str | bytes | None = None) -> None:
        """Until the client leaves; what it does wrong is answered with an error, and the conversation goes on.

        Args:
            first: a frame that the client has sent already.
        """
        if first is not None:
            await self._answer(first)
        async for frame in self._connection:
            await self._answer(frame)

    async def _answer(self, frame: str | bytes) -> None:
        start, number = time.perf_counter(), 0
        try:
            message = await beside(_read, binary(frame))
            number = message.number
            reply = await self._reply(message)
        except VlatrackError as error:
            self._service.latencies.refused += 1
            reply = ("error", {"error": str(error)})
        if reply is None:
            return
        kind, payload = reply
        content = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
        await self._connection.send(pack_vla_eval(content))
        if kind == "action":
            self._service.latencies.add_request(time.perf_counter() - start)

    async def _reply(self, message: "_Message") -> tuple[str, dict[str, Any]] | None:
        if isinstance(message.payload, VlatrackError):
            raise message.payload
        match message.kind:
            case "hello":
                return "hello", self._hello(message.payload)
            case "observation":
                return "action", {"actions": await self._action(message.payload)}
            case "episode_start" | "episode_end":
                self._forget()
                return None
            case "error":
                _log.warning("a client of vla-eval reports an error: %s", repr(message.payload)[:200])
                return None
        raise ProtocolError(f"message: of unknown type {str(message.kind)[:40]!r}")

    def _hello(self, payload: Any) -> dict[str, Any]:
        version = payload.get("protocol_version") if isinstance(payload, dict) else None
        if version != PROTOCOL_VERSION:
            raise ProtocolError(f"hello: of protocol version {str(version)[:20]}; expected {PROTOCOL_VERSION}")
        return self._service.hello

    async def _action(self, payload: Any) -> NDArray[np.float64]:
        """[A], that of this step."""
        if self._memory.add(self._service.reader.read(payload)):
            self._due.clear()
        if not self._due:
            chunk = await self._service.worker.chunk(self._memory.frames)
            self._due.extend(chunk.actions[: self._service.replan_every])
        return self._due.popleft()

    def _forget(self) -> None:
        self._memory.forget()
        self._due.clear()


@dataclass(frozen=True)
class _Message:
    kind: Any
    number: int
    payload: Any
    """Or, for arrays that are damaged, the error that is answered under the number."""


def _read(frame: bytes) -> _Message:
    entries = unpack(frame)
    if not isinstance(entries, dict) or not {"type", "payload", "seq"} <= entries.keys():
        raise ProtocolError("message: expected a map with type, payload, seq and timestamp")
    number = entries["seq"] if isinstance(entries["seq"], int) else 0
    try:
        return _Message(entries["type"], number, with_arrays(entries["payload"]))
    except ProtocolError as error:
        return _Message(entries["type"], number, error)


async def is_hello(frame: str | bytes) -> bool:
    """Whether a first frame is one of vla-eval's."""
    try:
        return bool((await beside(_read, binary(frame))).kind == "hello")
    except ProtocolError:
        return False

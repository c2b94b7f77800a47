"""A server in this process, on a free port, with a policy that computes what a test can predict."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

import numpy as np
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from vlatrack.data.deltas import Deltas
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ActingPolicy, ActionChunk, Moment
from vlatrack.serving.codec import pack_openpi, pack_vla_eval, unpack, with_arrays
from vlatrack.serving.port import open_port
from vlatrack.serving.server import ServerSettings, serving
from vlatrack.serving.service import Service

HORIZON, DIMS = 3, 2
T = TypeVar("T")


class FakePolicy(ActingPolicy):
    """The numbers of step h are 100 times what is in the top left corner of the first camera's last image, plus ten
    times that of the moment before, plus h."""

    def __init__(
        self,
        *,
        cameras: Sequence[str] = ("front",),
        history: int = 2,
        state_dim: int | None = 2,
        deltas: Deltas | None = None,
    ) -> None:
        self.name, self.sha256 = "fake/policy", "f" * 64
        self.interface = Interface(tuple(cameras), state_dim, history, HORIZON, DIMS, deltas=deltas)
        self.batches: list[int] = []
        self.encoded = 0
        self.may_compute, self.computes = threading.Event(), threading.Event()
        self.may_compute.set()

    def see_batch(self, observations: Sequence[Observation]) -> list[Moment]:
        self.encoded += len(observations)
        return [Moment(observation, {}) for observation in observations]

    def act_on(self, rows: Sequence[Sequence[Moment]], *, route: str = "head") -> list[ActionChunk]:
        self.computes.set()
        assert self.may_compute.wait(20)
        self.batches.append(len(rows))
        if any(row[-1].observation.instruction == "break" for row in rows):
            raise RuntimeError("broken by a secret")
        return [ActionChunk(self.expected([m.observation for m in row]), 0.001) for row in rows]

    def expected(self, moments: Sequence[Observation]) -> np.ndarray:
        corners = [float(moment.images[self.interface.cameras[0]][0, 0, 0]) for moment in moments]
        before = corners[-2] if len(corners) > 1 else 0
        return np.full((HORIZON, DIMS), 100 * corners[-1] + 10 * before) + np.arange(HORIZON)[:, None]


class Served:
    """An address to connect to, and what the server says about itself."""

    def __init__(self, port: int, service: Service) -> None:
        self.port, self.service = port, service

    def connect(self, path: str = "/openpi", **options: Any) -> "connect":
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, max_size=None, **options)


@contextmanager
def running(policy: ActingPolicy, **settings: Any) -> Iterator[Served]:
    """In a thread, as long as the block lasts."""
    port = open_port("127.0.0.1", 0)
    with port, beside(lambda: serving(policy, port, ServerSettings(**settings))) as service:
        if isinstance(policy, FakePolicy):
            policy.batches.clear()
            policy.computes.clear()
            policy.encoded = 0
        yield Served(port.getsockname()[1], service)


@contextmanager
def beside(server: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Holds a server open in a thread with an event loop of its own. One that does not end fails the test, and lets
    the next one begin."""
    ending, opened, closed = asyncio.Event(), Future[tuple[T, asyncio.AbstractEventLoop]](), Future[None]()

    async def hold() -> None:
        async with server() as it:
            opened.set_result((it, asyncio.get_running_loop()))
            await ending.wait()

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            (closed if opened.done() else opened).set_exception(error)
        else:
            closed.set_result(None)

    threading.Thread(target=run, name="server", daemon=True).start()
    it, loop = opened.result(20)
    try:
        yield it
    finally:
        loop.call_soon_threadsafe(ending.set)
        closed.result(20)


def image(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def asked(value: int, **others: Any) -> dict[str, Any]:
    """What a client of openpi sends; an entry of None is left out."""
    request = {"observation/image": image(value), "observation/state": np.zeros(2), "prompt": "push", **others}
    return {key: entry for key, entry in request.items() if entry is not None}


def ask(connection: Connection, request: Any) -> Any:
    """The answer to a client of openpi, or the text that refuses."""
    connection.send(request if isinstance(request, bytes | str) else pack_openpi(request))
    return read(connection)


def read(connection: Connection) -> Any:
    frame = connection.recv(timeout=20)
    return frame if isinstance(frame, str) else with_arrays(unpack(frame))


def say(connection: Connection, kind: str, payload: Any, number: int) -> None:
    """As a client of vla-eval."""
    connection.send(pack_vla_eval({"type": kind, "payload": payload, "seq": number, "timestamp": 1.5}))


HELLO = {"harness_version": "0.8.0", "protocol_version": 1, "benchmark": "LIBERO"}

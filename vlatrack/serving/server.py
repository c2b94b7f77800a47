"""The server: one port for both protocols and for plain HTTP, from the first client to SIGTERM."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed

from vlatrack import __version__
from vlatrack.errors import ServingError
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ActingPolicy, Route
from vlatrack.inference.session import Execution
from vlatrack.serving.cameras import ObservationReader
from vlatrack.serving.latency import Latencies
from vlatrack.serving.openpi import INTERNAL_ERROR, OpenpiConversation
from vlatrack.serving.pages import Pages
from vlatrack.serving.port import refused_port
from vlatrack.serving.service import Service
from vlatrack.serving.vla_eval import PROTOCOL_VERSION, VlaEvalConversation, is_hello
from vlatrack.serving.worker import Frame, InferenceWorker

OPENPI_PATH, VLA_EVAL_PATH = "/openpi", "/vla-eval"
_FIRST_WORD_S = 0.25
"""At another path, a client that says nothing for so long is one of openpi's, which waits for the metadata."""
_ENDING_S = 3.0
_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.websockets")
_quiet.setLevel(logging.CRITICAL)  # it would write a traceback for each port scanner


@dataclass(frozen=True)
class ServerSettings:
    """How a policy is served."""

    route: Route = "head"
    replan_every: int | None = None  # actions of a chunk that vla-eval's clients get; None: all
    cameras: Mapping[str, str] = field(default_factory=dict)  # keys of images, by camera; else the usual ones
    observation_params: Mapping[str, Any] = field(default_factory=dict)  # asked of vla-eval's benchmarks
    api_key: str | None = None
    largest_message: int = 64 * 2**20  # bytes
    largest_batch: int = 32  # observations in one pass
    fps: float | None = None  # env steps of the clients in a second, for a policy that counts seconds
    forced: Sequence[str] = ()  # where the policy does not fit the evaluation that it is served for

    def check(self, interface: Interface) -> None:
        """Raise SpecError or ServingError for what the policy cannot do."""
        Execution(replan_every=self.replan_every).check(interface.horizon)
        ObservationReader(interface, self.cameras)
        if self.fps is not None and interface.deltas is None:
            raise ServingError("--fps: the policy counts env steps, not seconds; leave it out")
        interface.steps_back(self.fps)


@asynccontextmanager
async def serving(policy: ActingPolicy, port: socket.socket, settings: ServerSettings) -> AsyncIterator[Service]:
    """Serve until the block is left; then clients are told that the server goes away (1001).

    Raises:
        VlatrackError: the policy cannot be served that way.
    """
    settings.check(policy.interface)
    latencies = Latencies()
    worker = InferenceWorker(policy, latencies, route=settings.route, largest_batch=settings.largest_batch)
    try:
        service = _service(policy, worker, latencies, settings)
        await worker.chunk([Frame(_blank(policy.interface))])  # the first pass takes longest
        latencies.clear()
        try:
            server = await _listening(service, port, settings)
        except OSError as error:
            raise refused_port(error, *port.getsockname()[:2]) from error
        try:
            yield service
        finally:
            server.close(code=1001, reason="the server ends")
            await asyncio.wait([asyncio.ensure_future(server.wait_closed())], timeout=_ENDING_S)
    finally:
        worker.close()


async def _listening(service: Service, port: socket.socket, settings: ServerSettings) -> Server:
    return await listen(
        lambda connection: _converse(connection, service),
        sock=port,
        process_request=Pages(service, settings.api_key),
        compression=None,
        max_size=settings.largest_message,
        max_queue=2,  # messages of a client that wait in memory
        ping_interval=None,  # a client that is busy simulating answers no pings
        close_timeout=2.0,
        logger=_quiet,
        server_header=None,
    )


async def serve_until_signal(
    policy: ActingPolicy, port: socket.socket, settings: ServerSettings, *, on_ready: Callable[[Service], None]
) -> Latencies:
    """Serve until SIGTERM or SIGINT.

    Returns:
        what was measured.

    Raises:
        VlatrackError: the policy cannot be served that way.
    """
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with serving(policy, port, settings) as service:
        on_ready(service)
        await ended.wait()
    return service.latencies


async def _converse(connection: ServerConnection, service: Service) -> None:
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    service.latencies.clients += 1
    service.latencies.connected += 1
    try:
        conversation, first = await _chosen(connection, service)
        await conversation.hold(first)
    except ConnectionClosed:
        pass  # the client is gone, whatever it was told last
    except Exception:
        _log.exception("a conversation failed")
        await connection.close(INTERNAL_ERROR, "internal error")
    finally:
        service.latencies.connected -= 1


async def _chosen(
    connection: ServerConnection, service: Service
) -> tuple[OpenpiConversation | VlaEvalConversation, str | bytes | None]:
    """By the path, or by who speaks first: vla-eval's clients do, openpi's wait. With the frame that has come."""
    assert connection.request is not None
    path = connection.request.path.partition("?")[0]
    if path == VLA_EVAL_PATH:
        return VlaEvalConversation(connection, service), None
    if path == OPENPI_PATH:
        return OpenpiConversation(connection, service), None
    try:
        first = await asyncio.wait_for(connection.recv(), _FIRST_WORD_S)
    except TimeoutError:
        return OpenpiConversation(connection, service), None
    if await is_hello(first):
        return VlaEvalConversation(connection, service), first
    return OpenpiConversation(connection, service), first


def _service(policy: ActingPolicy, worker: InferenceWorker, latencies: Latencies, settings: ServerSettings) -> Service:
    interface, recorded, deltas = policy.interface, policy.interface.recorded, policy.interface.deltas
    reader = ObservationReader(interface, settings.cameras)
    metadata = {
        "server": f"vlatrack {__version__}",
        "protocols": ["openpi", "vla-eval"],
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "cameras": list(interface.cameras),
        "camera_keys": {camera: list(keys) for camera, keys in reader.keys.items()},
        "state_dim": interface.state_dim,
        "history": interface.history,
        "history_deltas": None if deltas is None else list(deltas.seconds),
        "tolerance_s": None if deltas is None else deltas.tolerance_s,
        "fps": settings.fps,
        "history_start": "repeat" if interface.repeats_start else "shorter",
        "horizon": interface.horizon,
        "action_dim": interface.action_dim,
        "route": settings.route,
        "statistics": interface.statistics,
        "image_sizes": {camera: list(size) for camera, size in recorded.image_sizes.items()},
        "rotation": recorded.rotation,
        "prompt": recorded.prompt,
        "gripper": recorded.gripper,
        "waits": recorded.waits,
        "forced": list(settings.forced),
    }
    asked = {"send_wrist_image": reader.has_wrist, "send_state": interface.state_dim is not None}
    hello = {
        "harness_version": metadata["server"],
        "protocol_version": PROTOCOL_VERSION,
        "model_server": f"vlatrack:{policy.name}",
        "capabilities": {},
        "observation_params": asked | dict(settings.observation_params),
    }
    replan = settings.replan_every or interface.horizon
    return Service(interface, reader, worker, latencies, metadata, hello, replan, settings.fps)


def _blank(interface: Interface) -> Observation:
    image = np.zeros((224, 224, 3), np.uint8)
    state = None if interface.state_dim is None else np.zeros(interface.state_dim)
    return Observation(dict.fromkeys(interface.cameras, image), "wait", state)

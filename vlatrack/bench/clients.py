"""Clients of a policy server, as many at once as are wanted; in a process of their own, which imports no torch."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from vlatrack.serving.codec import pack_openpi


@dataclass(frozen=True)
class Load:
    """What each client asks for."""

    address: str
    cameras: tuple[str, ...]
    state_dim: int | None
    image_size: int

    def frame(self) -> bytes:
        """A request with images of noise."""
        generator, side = np.random.default_rng(0), self.image_size
        request = {
            f"observation/{camera}": generator.integers(0, 256, (side, side, 3), np.uint8) for camera in self.cameras
        }
        if self.state_dim is not None:
            request["observation/state"] = np.zeros(self.state_dim)
        return pack_openpi({**request, "prompt": "open the drawer", "reset": True})


def round_trips(load: Load, count: int) -> list[float]:
    """Seconds of so many requests of one client, one after another."""
    return asyncio.run(_round_trips(load, count))


async def _round_trips(load: Load, count: int) -> list[float]:
    frame, seconds = load.frame(), []
    async with connect(load.address, compression=None, max_size=None) as connection:
        await connection.recv()  # the metadata
        for _ in range(count):
            start = time.perf_counter()
            await _ask(connection, frame)
            seconds.append(time.perf_counter() - start)
    return seconds


def throughput(load: Load, clients: int, seconds: float) -> float:
    """Answers a second to so many clients, each of which asks again as soon as it has an answer."""
    return asyncio.run(_throughput(load, clients, seconds))


async def _throughput(load: Load, clients: int, seconds: float) -> float:
    connections = [await connect(load.address, compression=None, max_size=None) for _ in range(clients)]
    await asyncio.gather(*(connection.recv() for connection in connections))
    start = time.perf_counter()
    answers = await asyncio.gather(*(_keep_asking(one, load.frame(), start + seconds) for one in connections))
    rate = sum(answers) / (time.perf_counter() - start)
    await asyncio.gather(*(connection.close() for connection in connections))
    return rate


async def _keep_asking(connection: ClientConnection, frame: bytes, end: float) -> int:
    answers = 0
    while time.perf_counter() < end:
        await _ask(connection, frame)
        answers += 1
    return answers


async def _ask(connection: ClientConnection, frame: bytes) -> None:
    await connection.send(frame)
    answer: Sequence[int] | str = await connection.recv()
    assert not isinstance(answer, str), answer

"""What a server adds to a policy on this machine, and what many clients gain from sharing its passes.

The server runs in this process and its clients in another one. What is compared is measured in turns, so that what else
the machine does meets both.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from vlatrack.bench.clients import Load, round_trips, throughput
from vlatrack.errors import SpecError
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ActingPolicy
from vlatrack.serving.port import open_port
from vlatrack.serving.server import ServerSettings, serving

IMAGE_SIZE = 224
_CALLS, _TURNS = 5, 4  # calls in a turn, and turns in a round: the load of a machine changes within a second


@dataclass(frozen=True)
class ServingCost:
    """Medians over the rounds."""

    images: int  # of 224 x 224, in each request
    clients: int
    rounds: int
    act_s: float
    round_trip_s: float
    added_s: float  # median of the differences of a turn
    least_added_s: float  # of the fastest round trip and the fastest call of all, which other load disturbs least
    one_client_per_s: float
    clients_per_s: float
    gain: float  # median of the ratios of a round
    cpu_gain: float  # the same of the CPU time that this process takes for an answer
    batch_mean: float


def measure_serving(
    policy: ActingPolicy,
    *,
    clients: int,
    rounds: int,
    seconds: float,
    on_round: Callable[[int], None] = lambda _: None,
) -> ServingCost:
    """Measure round trips of one client beside ``act``, and the answers a second to one and to many clients.

    Args:
        seconds: for which answers are counted, each time.
        on_round: called with the number of rounds that are done.
    """
    return asyncio.run(_measure(policy, clients, rounds, seconds, on_round))


async def _measure(
    policy: ActingPolicy, clients: int, rounds: int, seconds: float, on_round: Callable[[int], None]
) -> ServingCost:
    context, port = multiprocessing.get_context("spawn"), open_port("127.0.0.1", 0)
    interface = policy.interface
    address = f"ws://127.0.0.1:{port.getsockname()[1]}/openpi"
    load = Load(address, interface.cameras, interface.state_dim, IMAGE_SIZE)
    with port, ProcessPoolExecutor(1, mp_context=context) as process:
        async with serving(policy, port, ServerSettings(fps=_fitting_fps(interface))) as service:
            await _elsewhere(process, round_trips, load, _CALLS)
            acts: list[list[float]] = []
            trips: list[list[float]] = []
            for _ in range(rounds * _TURNS):
                acts.append(await asyncio.to_thread(_acts, policy))
                trips.append(await _elsewhere(process, round_trips, load, _CALLS))
            one: list[float] = []
            many: list[float] = []
            cpu_gains = []
            for done in range(rounds):
                on_round(done)
                cpu = []
                for count, rates in ((1, one), (clients, many)):
                    service.latencies.clear()
                    before = time.process_time()
                    rates.append(await _elsewhere(process, throughput, load, count, seconds))
                    cpu.append((time.process_time() - before) / service.latencies.requests)
                cpu_gains.append(cpu[0] / cpu[1])
            on_round(rounds)
            batch_mean = service.latencies.figures()["batch_mean"]
    return ServingCost(
        images=len(interface.cameras),
        clients=clients,
        rounds=rounds,
        act_s=statistics.median(chain(*acts)),
        round_trip_s=statistics.median(chain(*trips)),
        added_s=statistics.median(
            statistics.median(trip) - statistics.median(act) for trip, act in zip(trips, acts, strict=True)
        ),
        least_added_s=min(chain(*trips)) - min(chain(*acts)),
        one_client_per_s=statistics.median(one),
        clients_per_s=statistics.median(many),
        gain=statistics.median(m / o for m, o in zip(many, one, strict=True)),
        cpu_gain=statistics.median(cpu_gains),
        batch_mean=batch_mean,
    )


def _fitting_fps(interface: Interface) -> float | None:
    """A rate that has steps at the moments of a policy that counts seconds: how many a client sends costs the same."""
    if interface.deltas is None:
        return None
    for fps in range(1, 1001):
        try:
            interface.steps_back(fps)
        except SpecError:
            continue
        return float(fps)
    raise SpecError("data.history_deltas: no rate up to 1000 steps a second has steps at all of them")


async def _elsewhere(process: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(process, function, *arguments)


def _acts(policy: ActingPolicy) -> list[float]:
    """Seconds of each ``act`` on what the clients send."""
    generator, interface = np.random.default_rng(0), policy.interface
    images = {camera: generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) for camera in interface.cameras}
    state = None if interface.state_dim is None else np.zeros(interface.state_dim)
    observation, seconds = Observation(images, "open the drawer", state), list[float]()
    for _ in range(_CALLS):
        start = time.perf_counter()
        policy.act(observation)
        seconds.append(time.perf_counter() - start)
    return seconds

"""A simulator in a process of its own: what it is asked, what it answers, and its loop.

The process is started by `vlatrack.envs.watched` as ``python -m vlatrack.envs.worker SOCKET LIFELINE``, with two
inherited file descriptors. It ends with the one that started it, however that ends: the lifeline is a pipe whose other
side closes then.
"""

import hashlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import (
    ChecksItself,
    Environment,
    EnvironmentInfo,
    Observation,
    ScriptedExpert,
    StoredStates,
    make_environment,
    stepped,
)
from vlatrack.envs.record import Demonstration, Trials
from vlatrack.errors import DataError, VlatrackError


@dataclass(frozen=True)
class Open:
    """Make the environment; the first request. The answer is `Opened`."""

    name: str
    options: Mapping[str, object]


@dataclass(frozen=True)
class Begin:
    """Start an episode. The answer is a `Stretch` of no steps, with one observation."""

    task: str
    seed: int
    waits: int  # env steps with the action `no_op` before the policy acts
    no_op: tuple[float, ...] | None  # None: zeros
    initial_state: int | None = None  # the number of a stored one


@dataclass(frozen=True)
class Check:
    """Look at the simulator itself. The answer is `Checked`."""


@dataclass(frozen=True)
class Act:
    """Execute actions until one of them ends the episode. The answer is a `Stretch`."""

    actions: NDArray[np.float32] | int  # [k, A]; or the number of steps in which the scripted expert acts
    seen: int  # the observations, at the end, whose images the policy will see


@dataclass(frozen=True)
class Try:
    """Make an attempt at a task. The answer is `Tried`."""

    trial: Trials
    number: int


@dataclass(frozen=True)
class Close:
    """Free the simulator and end; there is no answer."""


Request = Open | Check | Begin | Act | Try | Close


@dataclass(frozen=True)
class Opened:
    """What the environment is."""

    info: EnvironmentInfo
    tasks: tuple[str, ...]
    has_expert: bool
    source: str  # SHA-256 of the file with its class; empty where there is no such file


@dataclass(frozen=True)
class Checked:
    """What the simulator finds wrong with itself."""

    found: tuple[str, ...]


@dataclass(frozen=True)
class Stretch:
    """Some env steps of an episode."""

    observations: tuple[Observation, ...]  # after the last of them, the oldest first; only these have images
    steps: int = 0
    reward: float = 0.0  # the sum of the steps
    success: bool = False
    done: bool = False


@dataclass(frozen=True)
class Tried:
    """What came of an attempt."""

    found: Sequence[Demonstration]


@dataclass(frozen=True)
class Refused:
    """A mistake of the user, which every worker would run into."""

    kind: str  # the name of the exception in `vlatrack.errors`
    text: str


@dataclass(frozen=True)
class Failed:
    """The simulator raised an exception."""

    text: str


Answer = Opened | Checked | Stretch | Tried | Refused | Failed


def execute(environment: Environment, request: Begin | Act) -> Stretch:
    """Carry a request out."""
    if isinstance(request, Begin):
        observation = _begun(environment, request)
        _check_shapes(observation, environment.info)
        size = environment.info.action_dim
        no_op = np.zeros(size) if request.no_op is None else np.asarray(request.no_op)
        if no_op.shape != (size,):
            raise DataError(f"no_op: {len(no_op)} numbers, but an action of {request.task} has {size}")
        for left in range(request.waits, 0, -1):
            observation = stepped(environment, no_op.astype(np.float32), seen=left == 1).observation
        return Stretch((observation,))
    total = request.actions if isinstance(request.actions, int) else len(request.actions)
    observations: list[Observation] = []
    reward, steps = 0.0, 0
    for steps in range(1, total + 1):
        if isinstance(request.actions, int):
            assert isinstance(environment, ScriptedExpert), "whoever asks has read `Opened.has_expert`"
            action = environment.expert_action()
        else:
            action = np.clip(request.actions[steps - 1], -1, 1).astype(np.float32)
        result = stepped(environment, action, seen=steps > total - request.seen)
        reward += result.reward
        if steps > total - request.seen:
            observations.append(result.observation)
        if result.success or result.done:
            return Stretch(tuple(observations), steps, reward, result.success, result.done)
    return Stretch(tuple(observations), steps, reward)


def _begun(environment: Environment, request: Begin) -> Observation:
    if request.initial_state is None:
        return environment.reset(request.task, seed=request.seed)
    if not isinstance(environment, StoredStates):
        raise DataError(f"{request.task}: this simulator has no stored initial states; its class has no reset_to")
    return environment.reset_to(request.task, seed=request.seed, initial_state=request.initial_state)


def _check_shapes(observation: Observation, info: EnvironmentInfo) -> None:
    """Raise DataError for an observation that is not what the environment says about itself."""
    expected = {camera: ("uint8", (*size, 3)) for camera, size in info.cameras.items()}
    for camera, image in observation.images.items():
        found = str(np.asarray(image).dtype), np.shape(image)
        if camera in expected and found != expected[camera]:
            dtype, shape = expected[camera]
            raise DataError(
                f"observation: the simulator's image of {camera} is {found[0]} {list(found[1])}, but its info says "
                f"{dtype} {list(shape)}; correct the simulator"
            )
    if np.shape(observation.state) != (info.state_dim,):
        raise DataError(
            f"observation: the simulator's state has the shape {list(np.shape(observation.state))}, but its info says "
            f"{[info.state_dim]}; correct the simulator"
        )


def serve(connection: Connection) -> None:
    """Answer requests until there are no more."""
    environment: Environment | None = None
    try:
        while not isinstance(request := connection.recv(), Close):
            try:
                if isinstance(request, Open):
                    environment = make_environment(request.name, request.options)
                    has_expert, source = isinstance(environment, ScriptedExpert), _source(environment)
                    connection.send(Opened(environment.info, tuple(environment.tasks), has_expert, source))
                    continue
                assert environment is not None, "the first request is Open"
                if isinstance(request, Check):
                    found = environment.check() if isinstance(environment, ChecksItself) else ()
                    connection.send(Checked(tuple(found)))
                elif isinstance(request, Try):
                    connection.send(Tried(request.trial.attempt(environment, request.number)))
                else:
                    connection.send(execute(environment, request))
            except VlatrackError as error:
                connection.send(Refused(type(error).__name__, str(error)))
            except Exception as error:  # third-party code may fail in any way; the asker decides what becomes of it
                traceback.print_exc()
                connection.send(Failed(" ".join(f"{type(error).__name__}: {error}".split())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody asks any more
    finally:
        if environment is not None:
            environment.close()


def _source(environment: Environment) -> str:
    file = getattr(sys.modules[type(environment).__module__], "__file__", None)
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the other side is closed; nothing is ever written
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    # The module runs as __main__, but messages are pickled by the name under which others import it.
    from vlatrack.envs import worker

    worker.serve(Connection(int(sys.argv[1])))

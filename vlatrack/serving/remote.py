"""A policy behind a server of openpi's protocol, in the shape in which a `Session` asks a policy of this process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.deltas import Deltas
from vlatrack.data.recorded import Recorded
from vlatrack.errors import NoAnswerError, ServingError
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ActionChunk, Moment, Route
from vlatrack.serving.connection import OpenpiConnection

_RETRY_S = 0.5


@dataclass(frozen=True)
class RequestKeys:
    """Where a server of somebody else looks for the parts of an observation, and what it calls its answer."""

    images: Mapping[str, str]  # key: camera
    state: str | None  # None: it is not sent
    prompt: str
    actions: str


class PolicyServer:
    """A server that is connected to again when it was lost."""

    def __init__(self, address: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        """
        Args:
            timeout_s: for each answer, and for the server to come back.

        Raises:
            ServingError: no server of the protocol is there, or it wants another key.
            MissingPackageError: the extra ``serve`` is not installed.
        """
        self._arguments, self._timeout_s = (address, api_key), timeout_s
        self._connection = self._connect()
        self.address = self._connection.address
        self.metadata, self.metadata_sha256 = self._connection.metadata, self._connection.metadata_sha256

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an observation.

        Raises:
            NoAnswerError: there is none; the next request goes to a new connection.
            ServingError: the server does not come back, or with another policy.
        """
        try:
            return self._connection.ask(request)
        except NoAnswerError:
            self._connection.close()
            self._connection = self._connect_again()
            raise

    def close(self) -> None:
        """Leave the server."""
        self._connection.close()

    def _connect(self) -> OpenpiConnection:
        address, api_key = self._arguments
        return OpenpiConnection(address, api_key=api_key, timeout_s=self._timeout_s)

    def _connect_again(self) -> OpenpiConnection:
        give_up = time.monotonic() + self._timeout_s
        while True:
            try:
                connection = self._connect()
            except ServingError as error:
                if time.monotonic() >= give_up:
                    raise ServingError(f"{error}; start it again, and repeat the command") from error
                time.sleep(_RETRY_S)
                continue
            if connection.metadata_sha256 != self.metadata_sha256:
                connection.close()
                raise ServingError(f"{self.address}: another policy is served there now; evaluate it in another folder")
            return connection


class RemotePolicy:
    """The policy of a server.

    A server of vlatrack says what it wants to see; of another one, only the shape of a chunk has to be known, so it is
    asked once. All that is to be seen is in each request: what a connection remembers does not matter.
    """

    def __init__(self, server: PolicyServer, keys: RequestKeys | None, example: Observation) -> None:
        """
        Args:
            keys: of a server that is not vlatrack's; None: it is.
            example: an observation in the shapes of those that will come.

        Raises:
            ServingError: it does not answer the example with a chunk.
        """
        self._server, self._keys, self._camera_keys = server, keys, dict[str, str]()
        if keys is None:
            self.interface, self._camera_keys = _announced(server.metadata)
            return
        state_dim = None if example.state is None or keys.state is None else len(example.state)
        cameras = tuple(dict.fromkeys(keys.images.values()))
        horizon, action_dim = self._actions(server.ask(self._request([example]))).shape
        self.interface = Interface(cameras, state_dim, history=1, horizon=horizon, action_dim=action_dim)

    @staticmethod
    def is_announced(metadata: Mapping[str, Any]) -> bool:
        """Whether a server is vlatrack's, and says what its policy wants to see."""
        return str(metadata.get("server")).startswith("vlatrack ")

    def see(self, observation: Observation) -> Moment:
        """Check an observation.

        Raises:
            ObservationError: it is not what the policy expects.
        """
        self.interface.check(observation)
        return Moment(observation, {})

    def act_on(self, rows: Sequence[Sequence[Moment]], *, route: Route = "head") -> list[ActionChunk]:
        """The chunks of several rows of moments, the oldest first and the present one last; the route is the server's.

        Raises:
            NoAnswerError: one of them was not answered with a chunk.
            ServingError: the server is gone.
        """
        return [self._act([moment.observation for moment in row]) for row in rows]

    def _act(self, moments: Sequence[Observation]) -> ActionChunk:
        start = time.perf_counter()
        actions = self._actions(self._server.ask(self._request(moments)))
        expected = self.interface.horizon, self.interface.action_dim
        if actions.shape != expected:
            raise NoAnswerError(f"{self._server.address}: a chunk is {list(actions.shape)}, the first {list(expected)}")
        return ActionChunk(actions, time.perf_counter() - start)

    def _request(self, moments: Sequence[Observation]) -> dict[str, Any]:
        now, keys = moments[-1], self._keys
        if keys is None:
            stacked = {
                key: np.stack([moment.images[camera] for moment in moments[-self.interface.history :]])
                for camera, key in self._camera_keys.items()
            }
            state = {} if self.interface.state_dim is None else {"observation/state": np.asarray(now.state)}
            return {**stacked, **state, "prompt": now.instruction}
        images = {key: now.images[camera] for key, camera in keys.images.items()}
        state = {} if keys.state is None else {keys.state: np.asarray(now.state, np.float64)}
        return {**images, **state, keys.prompt: now.instruction}

    def _actions(self, answer: Mapping[str, Any]) -> NDArray[np.float64]:
        """The chunk [H, A] of an answer."""
        key = "actions" if self._keys is None else self._keys.actions
        actions, place = answer.get(key), self._server.address
        if not isinstance(actions, np.ndarray):
            raise NoAnswerError(f"{place}: the answer has no array {key!r}; it has {', '.join(map(str, answer))[:200]}")
        if actions.ndim != 2 or not actions.size or actions.dtype.kind not in "fiu":
            shape = f"{actions.dtype} {list(actions.shape)}"
            raise NoAnswerError(
                f"{place}: {key!r} is {shape}; expected numbers [steps of a chunk, numbers of an action]"
            )
        return actions.astype(np.float64)


def _announced(metadata: Mapping[str, Any]) -> tuple[Interface, dict[str, str]]:
    """What a server of vlatrack says about its policy, and the key of each camera's image."""
    try:
        cameras = tuple(map(str, metadata["cameras"]))
        history, horizon, action_dim = (int(metadata[name]) for name in ("history", "horizon", "action_dim"))
        state_dim = None if metadata["state_dim"] is None else int(metadata["state_dim"])
        keys = {camera: str(metadata["camera_keys"][camera][0]) for camera in cameras}
        recorded, deltas = _recorded(metadata), _deltas(metadata)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ServingError(
            f"the server's metadata lacks what vlatrack's has ({error}); update one of the two"
        ) from error
    interface = Interface(
        cameras,
        state_dim,
        history,
        horizon,
        action_dim,
        repeats_start=metadata.get("history_start") != "shorter",
        statistics=metadata.get("statistics"),
        recorded=recorded,
        deltas=deltas,
    )
    return interface, keys


def _deltas(metadata: Mapping[str, Any]) -> Deltas | None:
    """The seconds of the moments that the policy sees; None: they are env steps, as for all servers of before."""
    seconds, tolerance_s = metadata.get("history_deltas"), metadata.get("tolerance_s")
    if seconds is None:
        return None
    return Deltas(tuple(map(float, seconds)), None if tolerance_s is None else float(tolerance_s))


def _recorded(metadata: Mapping[str, Any]) -> Recorded:
    """How the data of the policy were made, as far as its server says."""
    sizes = {str(camera): (int(height), int(width)) for camera, (height, width) in metadata["image_sizes"].items()}
    return Recorded(sizes, metadata["rotation"], metadata["prompt"], metadata["gripper"], metadata.get("waits"))

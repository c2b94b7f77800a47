"""A client of `vlatrack serve`, and of any server that speaks openpi's protocol."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import ServingError
from vlatrack.serving.packages import require_packages


class PolicyClient:
    """A policy behind a port, by openpi's protocol.

    ``with PolicyClient("ws://127.0.0.1:8000/openpi") as policy: actions = policy.act(images, "open the drawer")``
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        """Connect; ``metadata`` is what the server says about its policy.

        Raises:
            ServingError: there is no such server, or it wants another key.
            MissingPackageError: the extra ``serve`` is not installed.
        """
        require_packages()
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
        self._address, self._open = address, ExitStack()
        try:
            self._connection = self._open.enter_context(connect(address, additional_headers=headers, **options))
        except (OSError, WebSocketException) as error:
            raise ServingError(f"{address}: no policy is served there ({error})") from error
        self._starts = True
        self.metadata: dict[str, Any] = self._receive()

    def act(self, images: Mapping[str, NDArray[np.uint8]], instruction: str, state: Any = None) -> NDArray[np.float64]:
        """The action chunk [H, A] for RGB images [height, width, 3] by camera and a proprioceptive state [N].

        For a policy with a history, call it in each step of the environment, or give images [moments, height, width,
        3].

        Raises:
            ServingError: the server refused the observation and closed the connection, or it has ended.
        """
        from vlatrack.serving.codec import pack_openpi

        request = {f"observation/{camera}": image for camera, image in images.items()}
        state = {} if state is None else {"observation/state": np.asarray(state)}
        frame = pack_openpi({**request, **state, "prompt": instruction, "reset": self._starts})
        self._starts = False
        actions: NDArray[np.float64] = self._receive(frame)["actions"]
        return actions

    def reset(self) -> None:
        """A new episode begins with the next observation."""
        self._starts = True

    def close(self) -> None:
        """Leave the server."""
        self._open.close()

    def _receive(self, request: bytes | None = None) -> Any:
        """The next frame, after a request was sent if there is one."""
        from websockets.exceptions import ConnectionClosed

        from vlatrack.serving.codec import unpack, with_arrays

        try:
            if request is not None:
                self._connection.send(request)
            frame = self._connection.recv()
        except ConnectionClosed as error:
            raise ServingError(f"{self._address}: the server has closed the connection ({error})") from error
        if isinstance(frame, str):
            raise ServingError(f"the server refused: {frame}")
        return with_arrays(unpack(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

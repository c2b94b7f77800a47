"""A client of `vlatrack serve`, and of any server that speaks openpi's protocol."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.serving.connection import OpenpiConnection


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
        self._connection = OpenpiConnection(address, api_key=api_key)
        self.metadata: dict[str, Any] = self._connection.metadata
        self._starts = True

    def act(self, images: Mapping[str, NDArray[np.uint8]], instruction: str, state: Any = None) -> NDArray[np.float64]:
        """The action chunk [H, A] for RGB images [height, width, 3] by camera and a proprioceptive state [N].

        For a policy with a history, call it in each step of the environment, or give images [moments, height, width,
        3].

        Raises:
            ServingError: the server refused the observation and closed the connection, or it has ended.
        """
        request = {f"observation/{camera}": image for camera, image in images.items()}
        state = {} if state is None else {"observation/state": np.asarray(state)}
        answer = self._connection.ask({**request, **state, "prompt": instruction, "reset": self._starts})
        self._starts = False
        actions: NDArray[np.float64] = answer["actions"]
        return actions

    def reset(self) -> None:
        """A new episode begins with the next observation."""
        self._starts = True

    def close(self) -> None:
        """Leave the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

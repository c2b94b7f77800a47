"""A connection to a server of openpi's protocol: its metadata first, then an answer to each request."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

from vlatrack.errors import NoAnswerError, ProtocolError, ServingError
from vlatrack.serving.packages import require_packages


class OpenpiConnection:
    """One connection; after an error it is of no use."""

    def __init__(self, address: str, *, api_key: str | None = None, timeout_s: float | None = None) -> None:
        """Connect; ``metadata`` is what the server says about its policy, ``metadata_sha256`` the digest of that frame.

        Args:
            timeout_s: for each answer; None: as long as it takes.

        Raises:
            ServingError: there is no such server, or it wants another key.
            MissingPackageError: the extra ``serve`` is not installed.
        """
        require_packages()
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
        self.address, self._timeout_s, self._open = shown_address(address), timeout_s, ExitStack()
        self.metadata_sha256 = ""
        try:
            self._connection = self._open.enter_context(connect(address, additional_headers=headers, **options))
        except (OSError, ValueError, WebSocketException) as error:
            raise ServingError(f"{self.address}: no policy is served there ({error})") from error
        try:
            self.metadata = self._next_frame("what it says first")
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an observation.

        Raises:
            NoAnswerError: the server refused, is gone, or answers too late or with what is no map.
        """
        from vlatrack.serving.codec import pack_openpi

        return self._next_frame("the answer", pack_openpi(request))

    def close(self) -> None:
        """Leave the server."""
        self._open.close()

    def _next_frame(self, what: str, request: bytes | None = None) -> dict[str, Any]:
        """The next frame, after a request was sent if there is one."""
        from websockets.exceptions import ConnectionClosed

        from vlatrack.serving.codec import unpack, with_arrays

        try:
            if request is not None:
                self._connection.send(request)
            frame = self._connection.recv(timeout=self._timeout_s)
        except ConnectionClosed as error:
            raise NoAnswerError(f"{self.address}: the server has closed the connection ({error})") from error
        except TimeoutError as error:
            raise NoAnswerError(f"{self.address}: no answer in {self._timeout_s:g} s") from error
        if isinstance(frame, str):
            raise NoAnswerError(f"the server refused: {_last_line(frame)}")
        self.metadata_sha256 = self.metadata_sha256 or hashlib.sha256(frame).hexdigest()
        try:
            content = with_arrays(unpack(frame))
        except ProtocolError as error:
            raise NoAnswerError(f"{self.address}: not openpi's protocol ({error})") from error
        if not isinstance(content, dict):
            raise NoAnswerError(
                f"{self.address}: {what} is a {type(content).__name__}; in openpi's protocol it is a map"
            )
        return content


def shown_address(address: str) -> str:
    """An address without login, query and fragment, which may hold keys."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _last_line(text: str) -> str:
    """Of a traceback, the line that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"

"""What the port answers to plain HTTP, and who may speak to it at all."""

import hmac
import json
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from vlatrack.serving.service import Service


class Pages:
    """/healthz, /health, /metadata and /metrics; all but the health ask for the key, if there is one."""

    def __init__(self, service: Service, api_key: str | None) -> None:
        self._service, self._api_key = service, api_key

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page, a refusal, or None: the request opens a WebSocket."""
        path = request.path.partition("?")[0]
        match path:
            case "/healthz":
                return connection.respond(HTTPStatus.OK, "OK\n")
            case "/health":
                return _json(connection, {"status": "ok"})
        if not self._may(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this server asks for an API key\n")
        match path:
            case "/metadata":
                return _json(connection, self._service.metadata)
            case "/metrics":
                return _json(connection, self._service.latencies.figures())
        return None

    def _may(self, request: Request) -> bool:
        if self._api_key is None:
            return True
        given = request.headers.get_all("Authorization")
        expected = f"Api-Key {self._api_key}"
        # In constant time: how long a comparison takes would tell how much of a guess is right.
        return len(given) == 1 and hmac.compare_digest(_bytes(given[0]), _bytes(expected))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _json(connection: ServerConnection, content: dict[str, Any]) -> Response:
    response = connection.respond(HTTPStatus.OK, json.dumps(content, indent=1) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response

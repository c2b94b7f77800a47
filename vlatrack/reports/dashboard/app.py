"""The dashboard's addresses: its pages, what they ask for, and the stream that tells them of changes.

Everything is read; nothing can be changed through it.
"""

import asyncio
import hmac
import mimetypes
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlatrack import __version__
from vlatrack.errors import VlatrackError
from vlatrack.reports.dashboard.comparison import comparison_content
from vlatrack.reports.dashboard.watch import RunsWatcher
from vlatrack.reports.run_content import json_text, line_content, run_content
from vlatrack.tracking.journal.decimation import DecimatedSeries, thinned
from vlatrack.tracking.journal.records import Kind

STATIC = Path(__file__).parent / "static"
MOST_COMPARED = 20
SPARK_POINTS = 48
_SPARKS = ("train_closs", "train_loss_ct", "train_z_loss", "train_loss")
_COOKIE = "vlatrack"
_ALIVE_EVERY_S = 15.0
_SHOWN_AS_THEY_ARE = {".png", ".jpg", ".jpeg", ".mp4", ".webm", ".svg", ".pdf", ".html"}
_HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    b"frame-ancestors 'none'; form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


def dashboard(
    watcher: RunsWatcher,
    *,
    hosts: frozenset[str],
    token: str | None = None,
    mlflow: Callable[[str | None], str] | None = None,
) -> Starlette:
    """The application.

    Args:
        hosts: the names under which this server may be addressed; a page of another site that points its own name here
            gets nothing.
        token: what a browser has to show once, as `?token=…`; None: nothing, for a server that only this machine
            reaches.
        mlflow: starts MLflow if it does not run yet, and returns the address of an experiment there; None: there is
            none to go to.
    """
    pages = _Pages(watcher, mlflow)
    routes = [
        Route("/", _page("common", "list")),
        Route("/run/{experiment}/{run}", _page("uplot", "common", "charts", "run", "run-live")),
        Route("/compare", _page("uplot", "common", "charts", "compare")),
        Route("/mlflow", pages.to_mlflow),
        Route("/api/runs", pages.rows),
        Route("/api/sparks", pages.sparks),
        Route("/api/run/{experiment}/{run}", pages.run),
        Route("/api/run/{experiment}/{run}/lines", pages.lines),
        Route("/api/compare", pages.compare),
        Route("/api/changes", pages.changes),
        Route("/files/{experiment}/{run}/{path:path}", pages.file),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, hosts=hosts, token=token)])


class _Guard:
    """Lets in who addresses this server by its name and, where it needs one, has the token."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], token: str | None) -> None:
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in _HEADERS.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        response = self._refusal(request)
        await (response or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if name not in self._hosts:
            return PlainTextResponse(f"this dashboard is not called {name[:80]}\n", status_code=421)
        if self._token is None:
            return None
        if hmac.compare_digest(request.query_params.get("token", "").encode(), self._token.encode()):
            left = request.url.remove_query_params("token")
            response = RedirectResponse(left.path + (f"?{left.query}" if left.query else ""), status_code=303)
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
            return response
        if hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), self._token.encode()):
            return None
        return PlainTextResponse("open the address that `vlatrack ui` printed, with its token\n", status_code=401)


class _Pages:
    """What answers each address."""

    def __init__(self, watcher: RunsWatcher, mlflow: Callable[[str | None], str] | None) -> None:
        self._watcher, self._mlflow = watcher, mlflow

    def rows(self, request: Request) -> Response:
        rows, _, version = self._watcher.rows()
        return _json(
            {
                "runs": str(self._watcher.runs),
                "version": version,
                "vlatrack": __version__,
                "complete": self._watcher.is_complete,
                "problem": self._watcher.problem,
                "mlflow": self._mlflow is not None,
                "rows": [asdict(row) for row in rows],
            }
        )

    def sparks(self, request: Request) -> Response:
        """The last documented losses of some runs as a few points each."""
        found = {}
        for run_id in request.query_params.getlist("run")[:100]:
            with self._watcher.series(run_id) as series:
                if series is not None:
                    chosen = {name: series.metrics[name] for name in _SPARKS if name in series.metrics}
                    found[run_id] = {name: _spark(metric) for name, metric in chosen.items()}
        return _json(found)

    def run(self, request: Request) -> Response:
        run_id = _run_id(request)
        run_dir, row = self._watcher.run_dir(run_id), self._watcher.row(run_id)
        with self._watcher.series(run_id) as series:
            if series is None or run_dir is None:
                return _missing(run_id)
            if row is None:
                return _json({"error": f"{run_id}: has just been found; try again"}, status=503)
            content = run_content(run_dir, row, series)
        return _json(content | {"mlflow": self._mlflow is not None})

    def lines(self, request: Request) -> Response:
        run_id = _run_id(request)
        try:
            since = float(request.query_params.get("since", "-inf"))
        except ValueError:
            return PlainTextResponse("since: no number\n", status_code=400)
        row = self._watcher.row(run_id)
        with self._watcher.series(run_id) as series:
            if series is None or row is None:
                return _missing(run_id)
            lines = line_content(series.metrics, since=since)
            events = sum(record.kind != Kind.ARTIFACT for record in series.others)
        return _json({"row": asdict(row), "lines": lines, "events": events})

    def compare(self, request: Request) -> Response:
        asked = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_COMPARED]
        with ExitStack() as held:
            found = []
            for run_id in sorted(asked):  # always in one order, so that two requests do not wait for each other
                series, row = held.enter_context(self._watcher.series(run_id)), self._watcher.row(run_id)
                if series is None or row is None:
                    return _missing(run_id)
                found.append((row, series))
            found.sort(key=lambda entry: asked.index(entry[0].id))
            return _json(comparison_content(found))

    async def changes(self, request: Request) -> Response:
        """A stream of server-sent events: the rows that changed, about once a poll of the watcher."""
        return StreamingResponse(self._changes(request), media_type="text/event-stream")

    async def _changes(self, request: Request) -> AsyncIterator[str]:
        asked = request.query_params.get("after", "-1")
        version = int(asked) if asked.lstrip("-").isdecimal() and len(asked) < 18 else -1
        only = request.query_params.get("run")
        async with self._watcher.changes() as changed:
            yield "retry: 1000\n\n"
            while not self._watcher.is_ending and not await request.is_disconnected():
                rows, gone, now = self._watcher.rows(after=version)
                if now != version:
                    told = [asdict(row) for row in rows if only in (None, row.id)]
                    if told or gone or only is None:
                        content = {"version": now, "rows": told, "gone": gone, "complete": self._watcher.is_complete}
                        yield f"data: {json_text(content)}\n\n"
                    version = now
                try:
                    await asyncio.wait_for(changed.wait(), _ALIVE_EVERY_S)
                except TimeoutError:
                    yield ": alive\n\n"
                changed.clear()

    async def to_mlflow(self, request: Request) -> Response:
        if self._mlflow is None:
            return PlainTextResponse("MLflow is only started for a dashboard on 127.0.0.1\n", status_code=404)
        try:
            address = await run_in_threadpool(self._mlflow, request.query_params.get("experiment"))
        except VlatrackError as error:
            return PlainTextResponse(f"{error}\n", status_code=502)
        return RedirectResponse(address, status_code=303)

    def file(self, request: Request) -> Response:
        """A file of a run. What a browser would run is shown in a place of its own, without access to these pages."""
        run_dir = self._watcher.run_dir(_run_id(request))
        asked = PurePosixPath(request.path_params["path"])
        if run_dir is None or asked.is_absolute() or ".." in asked.parts or "\\" in str(asked) or "\0" in str(asked):
            return _missing(str(asked))
        root, path = run_dir.resolve(), (run_dir / asked).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return _missing(str(asked))
        is_shown = path.suffix.lower() in _SHOWN_AS_THEY_ARE
        kind = mimetypes.guess_type(path.name)[0] if is_shown else "text/plain; charset=utf-8"
        headers = {
            "content-security-policy": "sandbox allow-scripts; default-src 'none'; img-src data: 'self'; "
            "media-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        }
        if not is_shown and _is_binary(path):
            kind = "application/octet-stream"
            headers["content-disposition"] = f"attachment; filename*=utf-8''{quote(path.name)}"
        return FileResponse(path, media_type=kind, headers=headers)


def _page(*scripts: str) -> Callable[[Request], Response]:
    """Answers with a page that these scripts fill."""
    loaded = "\n".join(f'<script src="/static/{name}.js" defer></script>' for name in scripts)
    text = (STATIC / "page.html").read_text(encoding="utf-8").replace("<!-- scripts -->", loaded)
    return lambda request: HTMLResponse(text)


def _run_id(request: Request) -> str:
    return f"{request.path_params['experiment']}/{request.path_params['run']}"


def _spark(metric: DecimatedSeries) -> list[list[float]]:
    points = thinned(metric.points(), SPARK_POINTS)
    return [[float(f"{step:.6g}"), float(f"{value:.4g}")] for step, _, value in points.tolist()]


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(4096)


def _missing(what: str) -> Response:
    return _json({"error": f"{what}: not in this runs folder"}, status=404)


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json_text(content), status_code=status, media_type="application/json")

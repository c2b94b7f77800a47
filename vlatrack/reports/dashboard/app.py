"""The dashboard's addresses: its pages, what they ask for, and the stream that tells them of changes.

Everything is read; nothing can be changed through it.
"""

import asyncio
import hmac
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
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
from vlatrack.reports.comparison_content import MOST_COMPARED, comparison_content
from vlatrack.reports.dashboard.run_files import run_file_response
from vlatrack.reports.dashboard.watch import RunsWatcher
from vlatrack.reports.page_files import COMPARISON_PAGE, RUN_PAGE, STATIC
from vlatrack.reports.run_content import json_text, line_content, run_content
from vlatrack.reports.zoomed_lines import zoomed_content
from vlatrack.tracking.backends.destinations import MLFLOW_STORE
from vlatrack.tracking.journal.decimation import DecimatedSeries, thinned
from vlatrack.tracking.journal.records import Kind

SPARK_POINTS = 48
_SPARKS = ("train_closs", "train_loss_ct", "train_z_loss", "train_loss")
_COOKIE = "vlatrack"
_ALIVE_EVERY_S = 15.0
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
        Route("/", _page("common", "sparks", "listen", "list")),
        Route("/run/{experiment}/{run}", _page(*RUN_PAGE, "lines", "listen", "run-live")),
        Route("/compare", _page(*COMPARISON_PAGE, "lines", "listen", "compare-live")),
        Route("/mlflow", pages.to_mlflow),
        Route("/api/runs", pages.rows),
        Route("/api/sparks", pages.sparks),
        Route("/api/run/{experiment}/{run}", pages.run),
        Route("/api/run/{experiment}/{run}/lines", pages.lines),
        Route("/api/run/{experiment}/{run}/zoom", pages.zoom),
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
        self._zooming = threading.Lock()
        """Whoever reads a part of a journal again needs some ten megabytes: one does at a time."""

    @property
    def _has_mlflow(self) -> bool:
        return self._mlflow is not None and (self._watcher.runs / MLFLOW_STORE).is_file()

    def rows(self, request: Request) -> Response:
        rows, _, version = self._watcher.rows()
        return _json(
            {
                "runs": str(self._watcher.runs),
                "mark": f"{self._watcher.life}-{version}",
                "vlatrack": __version__,
                "complete": self._watcher.is_complete,
                "problem": self._watcher.problem,
                "mlflow": self._has_mlflow,
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
                return self._missing(run_id)
            if row is None:
                return _not_read_yet(run_id)
            content = run_content(run_dir, row, series)
        return _json(content | {"mlflow": self._has_mlflow})

    def lines(self, request: Request) -> Response:
        run_id, since = _run_id(request), _number(request, "since", -math.inf)
        if since is None:
            return PlainTextResponse("since: no number\n", status_code=400)
        row = self._watcher.row(run_id)
        with self._watcher.series(run_id) as series:
            if series is None or row is None:
                return self._missing(run_id)
            lines = line_content(series.metrics, since=since)
            events = sum(record.kind != Kind.ARTIFACT for record in series.others)
        return _json({"row": asdict(row), "lines": lines, "events": events})

    def zoom(self, request: Request) -> Response:
        """The lines between two steps, in as much detail as a screen shows."""
        run_id = _run_id(request)
        low, high = _number(request, "from", -math.inf), _number(request, "to", math.inf)
        if low is None or high is None:
            return PlainTextResponse("from, to: no numbers\n", status_code=400)
        with self._zooming, self._watcher.series(run_id) as series:
            try:
                return _missing(run_id) if series is None else _json({"lines": zoomed_content(series, low, high)})
            except OSError:  # it is deleted, and the next look for runs finds that
                return _missing(run_id)

    def compare(self, request: Request) -> Response:
        asked = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_COMPARED]
        with ExitStack() as held:
            found = []
            for run_id in sorted(asked):  # always in one order, so that two requests do not wait for each other
                series, row = held.enter_context(self._watcher.series(run_id)), self._watcher.row(run_id)
                if series is None or row is None:
                    return self._missing(run_id)
                found.append((row, series))
            found.sort(key=lambda entry: asked.index(entry[0].id))
            return _json(comparison_content(found))

    def _missing(self, run_id: str) -> Response:
        """Until all runs have been found, nobody knows which are missing."""
        return _missing(run_id) if self._watcher.is_complete else _not_read_yet(run_id)

    async def changes(self, request: Request) -> Response:
        """A stream of server-sent events: the rows that changed, about once a poll of the watcher.

        Who was here before says up to where it knows, and gets what it has missed; after a restart, that is everything.
        """
        return StreamingResponse(self._changes(request), media_type="text/event-stream")

    async def _changes(self, request: Request) -> AsyncIterator[str]:
        watcher, only = self._watcher, set(request.query_params.getlist("run"))
        known = self._known(request.headers.get("last-event-id") or request.query_params.get("after", ""))
        async with watcher.changes() as changed:
            yield "retry: 1000\n\n"
            while not watcher.is_ending and not await request.is_disconnected():
                rows, gone, now = watcher.rows(after=known)
                if now != known:
                    told = [asdict(row) for row in rows if not only or row.id in only]
                    if told or gone or not only:
                        content = {"life": watcher.life, "rows": told, "gone": gone, "complete": watcher.is_complete}
                        yield f"id: {watcher.life}-{now}\ndata: {json_text(content)}\n\n"
                    known = now
                try:
                    await asyncio.wait_for(changed.wait(), _ALIVE_EVERY_S)
                except TimeoutError:
                    yield "event: alive\ndata:\n\n"
                changed.clear()

    def _known(self, mark: str) -> int:
        """The version of a mark of ours; -1 for any other."""
        life, _, version = mark.partition("-")
        return int(version) if life == self._watcher.life and version.isdecimal() and len(version) < 18 else -1

    async def to_mlflow(self, request: Request) -> Response:
        if self._mlflow is None:
            return PlainTextResponse("MLflow is only started for a dashboard on 127.0.0.1\n", status_code=404)
        try:
            address = await run_in_threadpool(self._mlflow, request.query_params.get("experiment"))
        except VlatrackError as error:
            return PlainTextResponse(f"{error}\n", status_code=502)
        return RedirectResponse(address, status_code=303)

    def file(self, request: Request) -> Response:
        run_dir, asked = self._watcher.run_dir(_run_id(request)), request.path_params["path"]
        return (None if run_dir is None else run_file_response(run_dir, asked)) or _missing(asked)


def _page(*scripts: str) -> Callable[[Request], Response]:
    """Answers with a page that these scripts fill."""
    loaded = "\n".join(f'<script src="/static/{name}.js" defer></script>' for name in scripts)
    text = (STATIC / "page.html").read_text(encoding="utf-8").replace("<!-- scripts -->", loaded)
    return lambda request: HTMLResponse(text)


def _run_id(request: Request) -> str:
    return f"{request.path_params['experiment']}/{request.path_params['run']}"


def _number(request: Request, name: str, default: float) -> float | None:
    """What the address says under this name; None if that is no number."""
    try:
        asked = float(request.query_params.get(name, default))
    except ValueError:
        return None
    return None if math.isnan(asked) else asked


def _spark(metric: DecimatedSeries) -> list[list[float]]:
    points = thinned(metric.points(), SPARK_POINTS)
    return [[float(f"{step:.6g}"), float(f"{value:.4g}")] for step, _, value in points.tolist()]


def _missing(what: str) -> Response:
    return _json({"error": f"{what}: not in this runs folder"}, status=404)


def _not_read_yet(run_id: str) -> Response:
    """Accepted, but there is no answer yet: the page asks again."""
    return _json({"error": f"{run_id}: is still being read"}, status=202)


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json_text(content), status_code=status, media_type="application/json")

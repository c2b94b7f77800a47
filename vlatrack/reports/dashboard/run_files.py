"""A file of a run as an answer: none outside of the run, and none that a browser would run with these pages' rights."""

import mimetypes
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from starlette.responses import FileResponse

_SHOWN_AS_THEY_ARE = {".png", ".jpg", ".jpeg", ".mp4", ".webm", ".svg", ".pdf", ".html"}
_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data: 'self'; media-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def run_file_response(run_dir: Path, asked: str) -> FileResponse | None:
    """The file of this path in the run, or the part of it that the request's Range asks for; None if there is none."""
    path = PurePosixPath(asked)
    if path.is_absolute() or ".." in path.parts or "\\" in asked or "\0" in asked:
        return None
    root, file = run_dir.resolve(), (run_dir / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        return None
    is_shown = file.suffix.lower() in _SHOWN_AS_THEY_ARE
    kind = mimetypes.guess_type(file.name)[0] if is_shown else "text/plain; charset=utf-8"
    headers = {"content-security-policy": _POLICY}
    if not is_shown and _is_binary(file):
        kind = "application/octet-stream"
        headers["content-disposition"] = f"attachment; filename*=utf-8''{quote(file.name)}"
    return FileResponse(file, media_type=kind, headers=headers)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(4096)

"""The evaluations in simulators whose folders lie in a run, as its page shows them; the files may be anybody's."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MOST_EVALUATIONS = 200
_MOST_VIDEOS = 100
_MOST_TASKS = 500
_LONGEST_TEXT = 1 << 20


def own_text(file: Path) -> str | None:
    """The text of a small file; None if there is none, or it is a link to one."""
    try:
        if not _is_own(file):
            return None
        with file.open("rb") as stream:
            return stream.read(_LONGEST_TEXT).decode("utf-8", "replace")
    except OSError:
        return None


def evaluations_content(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The evaluations, as far as they can be read: a place, the rates of all episodes and of each task, and videos."""
    for file in sorted((run_dir / "evaluation").glob("**/evaluation.json"))[:_MOST_EVALUATIONS]:
        folder = file.parent
        if file.is_symlink() or not folder.resolve().is_relative_to(run_dir.resolve()):
            continue
        content = _mapping(_parsed(own_text(file)))
        videos = sorted(path.relative_to(run_dir).as_posix() for path in folder.glob("videos/*.mp4") if _is_own(path))
        acting = _mapping(content.get("acting"))
        yield {
            "place": folder.relative_to(run_dir).as_posix(),
            "name": _text(content.get("name")),
            "checkpoint": _text(content.get("checkpoint")),
            "route": _text(acting.get("route")),
            "instead": next((who for who in ("blind", "expert") if acting.get(who) is True), None),
            "rates": _rates(_mapping(content.get("summary"))),
            "videos": videos[:_MOST_VIDEOS],
        }


def _rates(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of all episodes first, then of each task if there are several; none of an evaluation that is not complete."""
    if not summary:
        return []
    tasks = [(task, _mapping(of)) for task, of in list(_mapping(summary.get("tasks")).items())[:_MOST_TASKS]]
    if len(tasks) == 1:
        return [_rate(*tasks[0])]
    return [_rate("all", summary), *(_rate(task, of) for task, of in tasks)]


def _rate(task: str, of: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: of.get(name) if type(of.get(name)) is int else None for name in ("successes", "episodes", "errors")}
    interval = of.get("wilson")
    ends = [_share(end) for end in interval] if isinstance(interval, list) else []
    has_ends = len(ends) == 2 and None not in ends
    return {"task": task, **counts, "rate": _share(of.get("success_rate")), "wilson": ends if has_ends else None}


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _parsed(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_own(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()

"""The journal of a run made again from what a tracker holds of it, beside its spec and manifest."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlatrack.spec.identity import Scalar, flatten
from vlatrack.tracking.journal.encoding import encode
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.privacy import write_private

FILES = ("spec.yaml", "manifest.json")
"""What a tracker must have of a run beside its metrics."""

_ENDS = {"FINISHED", "FAILED", "KILLED"}
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class LoggedValue(NamedTuple):
    """A value of a metric, by its documented name; `t_ms` is Unix time in milliseconds."""

    name: str
    t_ms: int
    step: int
    value: float


@dataclass(frozen=True)
class TrackedStart:
    """Of a run, what its start and its end record say, as far as a tracker has kept it."""

    tracker: str
    run_id: str
    experiment: str
    tags: Mapping[str, str]
    began_ms: int
    ended_ms: int
    status: str
    """FINISHED, FAILED, KILLED, or another word for a run without an end."""


def write_journal(folder: Path, start: TrackedStart, values: Iterable[LoggedValue]) -> None:
    """Write the journal as far as it is known, in a folder that has the spec: the start, the metrics, and the end."""
    together: dict[tuple[int, int], dict[str, float]] = {}
    for value in values:
        together.setdefault((value.t_ms, value.step), {})[value.name] = value.value
    began: dict[str, Any] = {
        "name": folder.name,
        "experiment": start.experiment,
        "params": _settings(folder),
        "tags": dict(start.tags),
        "datasets": [],
        "group": None,
    }
    records: list[tuple[str, int, int | None, Mapping[str, Any]]] = [(Kind.START, start.began_ms, None, began)]
    records += [(Kind.METRICS, t_ms, step, together[t_ms, step]) for t_ms, step in sorted(together)]
    if start.status in _ENDS:
        end = {"status": start.status, "reason": None, "deliver_until_ms": start.ended_ms}
        records.append((Kind.FINISH, start.ended_ms, None, end))
    lines = []
    for seq, (kind, t_ms, step, data) in enumerate(records):
        fixed = {"v": 1, "run": start.run_id, "writer": start.tracker, "seq": seq, "t_ms": t_ms, "kind": str(kind)}
        lines.append(f"{encode({**fixed, 'step': step, 'data': data})}\n")
    write_private(folder / "journal.jsonl", "".join(lines))


def plain_name(name: str) -> str:
    """A name that is a folder's, whatever somebody has called the run; empty if nothing of it can be."""
    return _UNUSUAL.sub("_", name).strip("._")[:100]


def _settings(folder: Path) -> Mapping[str, Scalar]:
    """The flat settings with their types, which trackers have lost."""
    from vlatrack.spec.load import load_spec  # takes half a second

    return flatten(load_spec(folder / "spec.yaml", stored=True))

"""The description of a run at MLflow: where it lies, its verdict, and the documented metrics from first to best.

A tag that MLflow's pages do not show holds the digest of the text that was written, so that one that a person has
changed is told from ours, and left alone.
"""

import hashlib
import math
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from vlatrack.health.finding import verdict
from vlatrack.metrics.grouping import is_documented
from vlatrack.metrics.schema import MetricSchema
from vlatrack.tracking.health import recorded_findings
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.printable import printable
from vlatrack.tracking.run_files import RunFiles

NOTE_DIGEST = "mlflow.vlatrack.note"
_MOST_FINDINGS = 20


def first_line(run_dir: Path) -> str:
    """What a new run is described by."""
    return f"Run directory: `{run_dir}` on {socket.gethostname()}"


def put_description(client: MlflowClient, run_id: str, run_dir: Path, status: str) -> None:
    """Describe the run as its journal is now, unless a person has changed the description."""
    tags = client.get_run(run_id).data.tags
    present = tags.get(MLFLOW_RUN_NOTE, "")
    is_first = present.startswith("Run directory: `") and "\n" not in present
    if present and not is_first and tags.get(NOTE_DIGEST) != _digest(present):
        return
    text = description(run_dir, status)
    if text != present:
        client.set_tag(run_id, NOTE_DIGEST, _digest(text))
        client.set_tag(run_id, MLFLOW_RUN_NOTE, text)


def description(run_dir: Path, status: str) -> str:
    """Markdown; `status` is RUNNING, FINISHED, FAILED or KILLED."""
    files = RunFiles(run_dir)
    journal, found = files.journal, recorded_findings(files.journal)
    is_known = bool(found) or files.health.exists()  # of a run that was not watched nobody knows
    verdict_line = f"**{status}, {verdict(found)}**" if is_known else f"**{status}**"
    findings = [f"- {finding.severity}: {_plain(finding.line())}" for finding in found[-_MOST_FINDINGS:]]
    table = "\n".join(_table(metric_history(journal)))
    return "\n\n".join(part for part in (verdict_line, "\n".join(findings), table, first_line(run_dir)) if part)


def _table(history: dict[str, list[tuple[int, float]]]) -> Iterator[str]:
    """The documented metrics in the order of their declaration, the losses of all splits first."""
    names = [name for name in history if is_documented(name)]
    if not names:
        return
    schema = MetricSchema.covering(names)
    order = {name: index for index, name in enumerate(schema.names())}
    yield "| metric | first | last | best | at step |"
    yield "|---|---|---|---|---|"
    for name in sorted(names, key=lambda name: (schema[name].step is not None, order[name])):
        values = history[name]
        best = _best(schema, name, values)
        shown = ("", "") if best is None else (f"{best[1]:.4g}", str(best[0]))
        yield f"| {name} | {values[0][1]:.4g} | {values[-1][1]:.4g} | {shown[0]} | {shown[1]} |"


def _best(schema: MetricSchema, name: str, values: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """Step and value; None if no value is finite."""
    best: tuple[int, float] | None = None
    for step, value in values:
        if math.isfinite(value) and schema.is_better(name, value, None if best is None else best[1]):
            best = step, value
    return best


def _plain(text: object) -> str:
    """Of a journal that may be anybody's: one line."""
    return printable(" ".join(str(text).split()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

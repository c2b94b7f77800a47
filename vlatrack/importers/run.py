"""A training of another system as a run of vlatrack, with a directory, a journal, log files, figures and trackers."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vlatrack import __version__
from vlatrack.errors import SpecError
from vlatrack.importers.rynnvla import Rows, Sources, find_sources, read_rows
from vlatrack.metrics.schema import chunk_horizon
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.reports.figures import write_figures
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backend_label, backends_of
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.records import Kind, finish_record, last_record, read_records
from vlatrack.tracking.privacy import private_directory, private_files, write_private
from vlatrack.tracking.run import DeliveryReport, TrackedRun
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.sharing import umask_for

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Imported:
    """What an import led to; `delivery` is None if the run had been imported and delivered before."""

    directory: Path
    delivery: DeliveryReport | None
    notices: tuple[str, ...]
    horizon: int


def import_run(
    paths: Sequence[Path],
    *,
    name: str,
    runs: Path,
    backends: Sequence[BackendConfig],
    steps_per_epoch: int | None = None,
    timeout_s: float = 600,
) -> Imported:
    """Import the log and event files at `paths` as a run of the experiment `name` below `runs`; see `read_rows`.

    The run's id is derived from the content of the files, so a second import finds the first one and delivers what is
    left.

    Raises:
        VlatrackError: a file cannot be read, `runs` cannot be written, or a tracker cannot be used; no run is created.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(f"--name {name!r}: use at most 100 letters, digits, '.', '_' and '-', a letter or digit first")
    sources = find_sources(paths)
    found = read_rows(sources, steps_per_epoch=steps_per_epoch)
    horizon = chunk_horizon(metric for row in found.rows for metric in row.values)
    run_id = f"import-{sources.digest()[:16]}"
    files = RunFiles(runs / name / run_id)
    ended = _has_ended(files)
    if ended and _is_delivered(files, backends):
        return Imported(files.run_dir, None, found.notices, horizon)
    _check_writable(runs)
    first, last = min(row.t_ms for row in found.rows), max(row.t_ms for row in found.rows)
    tracked = TrackedRun.start(
        files.run_dir,
        uid=f"{name[:40]}-{run_id}",
        name=run_id,
        experiment=name,
        backends=backends,
        params={},
        tags={
            "vlatrack.version": __version__,
            "vlatrack.imported": "true",
            "vlatrack.imported_from": str(sources.files[0].absolute().parent),
        },
        resume=files.journal.exists(),
        t_ms=first,
    )
    try:
        if not ended:
            _log_rows(tracked, files, found)
            _keep_files(tracked, files, sources)
    except BaseException as error:
        tracked.finish("FAILED", reason=f"importing: {type(error).__name__}: {error}")
        raise
    return Imported(files.run_dir, tracked.finish("FINISHED", timeout_s=timeout_s, t_ms=last), found.notices, horizon)


def _has_ended(files: RunFiles) -> bool:
    """Whether an earlier import wrote the whole journal."""
    end = finish_record(files.journal) if files.journal.exists() else None
    return end is not None and end.data["status"] == "FINISHED"


def _is_delivered(files: RunFiles, backends: Sequence[BackendConfig]) -> bool:
    last = last_record(files.journal)
    assert last is not None, "an ended run has records"
    labels = [backend_label(config, index) for index, config in enumerate(backends)]
    try:
        same = backends_of(files.backends.read_text(encoding="utf-8")) == list(backends)
    except (ValueError, TypeError):
        return False  # damaged; it is written anew
    cursors = [CursorFile(files.delivery, label).read() for label in labels]
    return same and all(cursor.seq == last.seq and cursor.is_all for cursor in cursors)


def _check_writable(runs: Path) -> None:
    try:
        private_directory(runs)
        with tempfile.TemporaryFile(dir=runs):
            pass
    except OSError as error:
        raise SpecError(f"{runs}: runs cannot be written there ({error.strerror}); choose another --runs") from None


def _log_rows(tracked: TrackedRun, files: RunFiles, found: Rows) -> None:
    """Log what an interrupted import has not logged yet; rows always come in the same order."""
    logged = sum(record.kind == Kind.METRICS for record in read_records(files.journal))
    for row in found.rows[logged:]:
        tracked.log(row.values, step=row.step, t_ms=row.t_ms)


def _keep_files(tracked: TrackedRun, files: RunFiles, sources: Sources) -> None:
    """Copy the log files, write the manifest with the origin of every file, and draw the figures."""
    for split, path in sources.logs.items():
        copy = files.run_dir / LOG_FILES[split][0]
        shutil.copy2(path, copy)
        copy.chmod(0o666 & ~umask_for(copy))
        tracked.log_artifact(copy, name=copy.name)
    manifest = files.run_dir / "manifest.json"
    described = {"vlatrack": __version__, "imported": [_describe(path) for path in sources.files]}
    write_private(manifest, json.dumps(described, indent=1) + "\n")
    tracked.log_artifact(manifest, name=manifest.name)
    with private_files(files.run_dir):
        figures = write_figures(files.run_dir, output=files.run_dir / "report")
    for figure in figures:
        tracked.log_artifact(figure, name=f"figures/{figure.name}")


def _describe(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    modified = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
    return {"file": str(path.absolute()), "bytes": stat.st_size, "modified": modified}

"""The start of a run on the disk: what is checked before it, the journal, its first record, and the files beside it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.health.thresholds import Thresholds
from vlatrack.tracking.arguments import checked_experiment, checked_text, plain_datasets, plain_params, plain_tags
from vlatrack.tracking.backends.base import BackendConfig, DatasetInput, Scalar
from vlatrack.tracking.backends.destinations import check_same_naming, remember_starts
from vlatrack.tracking.backends.registry import backends_of, backends_text, check_backend
from vlatrack.tracking.journal.history import last_start
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind, last_record
from vlatrack.tracking.privacy import check_no_links, private_directory, redact, redact_param, write_private
from vlatrack.tracking.run_files import RunFiles


def start_data(
    name: str,
    experiment: str,
    backends: Sequence[BackendConfig],
    params: Mapping[str, Scalar],
    tags: Mapping[str, str],
    datasets: Sequence[DatasetInput],
    group: str | None,
) -> dict[str, Any]:
    """What the start record holds, without secrets; TrackerError or MissingPackageError for what cannot be used."""
    for config in backends:
        check_backend(config)
    kept = plain_params(params)
    return {
        "name": redact(checked_text("name", name) or ""),
        "experiment": checked_experiment(experiment),
        "params": {k: redact_param(k, v) if isinstance(v, str) else v for k, v in kept.items()},
        "tags": {key: redact_param(key, value) for key, value in plain_tags(tags).items()},
        "datasets": plain_datasets(datasets),
        "group": None if group is None else redact(checked_text("group", group) or ""),
    }


def open_journal(files: RunFiles, uid: str) -> Journal:
    """Make the directory of the run and open its journal for writing; TrackerError if the disk refuses, or another
    process writes it."""
    try:
        check_no_links(private_directory(files.delivery))
        return Journal.open(files.journal, run=uid, writer="trainer")
    except OSError as error:
        raise cannot_be_written(error, files.run_dir) from error


def cannot_be_written(error: OSError, place: Path) -> TrackerError:
    """What to raise for a place that the system refuses."""
    return TrackerError(f"{error.filename or place}: {error.strerror}; no run can be written there")


def begin_journal(
    files: RunFiles,
    journal: Journal,
    backends: Sequence[BackendConfig],
    data: Mapping[str, Any],
    t_ms: int | None,
    health: Thresholds | None,
) -> None:
    """Write the start record; first what trackers there are, so that a run that dies just then is known to the next
    sync. TrackerError if the disk does not take it."""
    try:
        write_private(files.backends, backends_text(backends))
        if health is not None:
            write_private(files.health, health.to_json())
    except OSError as error:
        raise TrackerError(f"{files.backends}: {error.strerror}; free some disk space") from error
    if journal.append(Kind.START, data, t_ms=t_ms) is None:
        raise TrackerError(f"{files.journal}: cannot be written; free some disk space")


def with_destinations(files: RunFiles, backends: Sequence[BackendConfig]) -> list[BackendConfig]:
    """The trackers, with where the run is meant to go; a damaged file of an earlier part of the run says nothing.

    TrackerError if one of them had metrics under other names before."""
    earlier: list[BackendConfig] = []
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        earlier = backends_of(files.backends.read_text(encoding="utf-8"))
    started = remember_starts(backends, earlier, files.runs)
    check_same_naming(started, earlier, files.runs)
    return started


def check_continues(files: RunFiles, uid: str, experiment: str, resume: bool) -> None:
    """TrackerError if the directory holds a run that is not to be resumed, or another one than this."""
    last = last_record(files.journal)
    if last is not None and not resume:
        raise TrackerError(f"{files.run_dir}: holds a run already; resume it or choose another directory")
    if last is not None and last.run != uid:
        raise TrackerError(f"{files.run_dir}: belongs to run {last.run}, not to {uid}; choose another directory")
    start = last_start(files.journal)
    if start is not None and start.data["experiment"] != experiment:
        belongs = f"belongs to experiment {start.data['experiment']}, not to {experiment}"
        raise TrackerError(f"{files.run_dir}: {belongs}; resume it as a run of that one")

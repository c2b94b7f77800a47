"""Comparing a run's journal with what its backends hold: by counts, and value by value where a backend lists them."""

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import (
    Audit,
    BackendConfig,
    ListsValues,
    NumberFormat,
    RejectedError,
    RemoteDeletedError,
    RunStart,
    StoredValue,
)
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.configs import configs_of_run
from vlatrack.tracking.delivery.journal_values import metric_records, records_with, values_of
from vlatrack.tracking.delivery.value_hashes import (
    HashComparison,
    HashFile,
    ValueBatch,
    ValueHasher,
    compare,
)
from vlatrack.tracking.journal.history import first_start, run_status
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, Trust, untrusted

SHOWN = 3
"""How many of the missing values a difference names."""
_SEARCHED = 1 << 20
"""Among how many of them these are searched for."""
_VALUES_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class BackendAudit:
    """One backend beside the journal; `differences` is empty if they agree in all that the backend can tell."""

    label: str
    journal: Audit
    backend: Audit
    differences: tuple[str, ...]
    cannot_tell: str | None = None
    """Why the backend is none that could be compared."""
    values: HashComparison | None = None
    """Value by value, where the backend lists them."""
    state: Literal["compared", "unknown", "deleted", "not asked"] = "compared"
    """Whether it could be compared; else it does not know the run, a person deleted that, or neither is known."""


def audit_run(run_dir: Path, labels: Collection[str], *, trust: Trust = NOTHING) -> list[BackendAudit]:
    """Ask each of these backends; reads the whole journal. One that cannot be asked now, or that is not to be trusted,
    has that as its difference."""
    journal = journal_audit(run_dir)
    return [
        audit_backend(run_dir, label, config, journal)
        if (reason := untrusted(config, RunFiles(run_dir).runs, trust=trust)) is None
        else BackendAudit(label, journal, Audit(), (f"not asked: {reason}",), state="not asked")
        for label, config in configs_of(run_dir, labels)
    ]


def configs_of(run_dir: Path, labels: Collection[str]) -> list[tuple[str, BackendConfig]]:
    """The labels and the configurations of these backends of a run."""
    return [(label, config) for label, config in configs_of_run(run_dir).items() if label in labels]


def journal_audit(run_dir: Path) -> Audit:
    """What the journal holds, in the terms of a backend's audit."""
    files = RunFiles(run_dir)
    hasher, names, last_seq = ValueHasher(NumberFormat()), set[str](), -1
    with HashFile(files.delivery) as hashes:
        for records in metric_records(files.journal):
            batch = values_of(records, str, files.journal)
            names.update(batch.keys)
            hashes.add(hasher(batch))
            last_seq = max([last_seq, *(record.seq for record in records)])
        values = sum(len(distinct) for distinct, _ in hashes.ranges())
    return Audit(run_status(run_dir).status, len(names), values, last_seq)


def audit_backend(run_dir: Path, label: str, config: BackendConfig, journal: Audit) -> BackendAudit:
    """Compare one backend with what the journal holds."""
    files = RunFiles(run_dir)
    start = first_start(files.journal)
    blank = BackendAudit(label, journal, Audit(), ())
    try:
        backend = connect(config, run_dir)
    except Exception as error:  # a class of others, or a destination that the environment does not name
        return replace(blank, differences=(f"cannot be asked ({one_line(error)})",), state="not asked")
    try:
        held = backend.audit(start)
        if held == Audit():
            return replace(blank, differences=("does not know the run",), state="unknown")
        if not isinstance(backend, ListsValues):
            return replace(blank, backend=held, differences=tuple(_count_differences(journal, held)))
        with compared_values(files, backend, start) as (values, keys, missing):
            held = replace(held, metric_keys=keys, values=values.there)
            examples = _first_missing(files, backend, missing) if values.missing else ()
        differences = (
            *_count_differences(journal, replace(held, values=None)),
            *_value_differences(values, examples),
        )
        return replace(blank, backend=held, differences=differences, values=values)
    except RejectedError as verdict:
        return replace(blank, cannot_tell=str(verdict), state="not asked")
    except RemoteDeletedError as deleted:
        return replace(blank, differences=(str(deleted),), state="deleted")
    except TrackerError:
        raise
    except Exception as error:  # the clients of the trackers raise whatever they like; the table shows it
        return replace(blank, differences=(f"cannot be asked ({one_line(error)})",), state="not asked")


@contextlib.contextmanager
def compared_values(
    files: RunFiles, backend: ListsValues, start: RunStart
) -> Iterator[tuple[HashComparison, int, HashFile]]:
    """How the values of a backend differ from the journal's, how many metrics it has, and the hashes of those values
    that it lacks."""
    hasher, keys = ValueHasher(backend.numbers), set[str]()
    with HashFile(files.delivery) as here, HashFile(files.delivery) as there, HashFile(files.delivery) as missing:
        key_of = functools.cache(backend.metric_key)
        for records in metric_records(files.journal):
            here.add(hasher(values_of(records, key_of, files.journal)))
        stored = backend.values(start)
        while some := list(islice(stored, _VALUES_AT_ONCE)):
            batch = _batch_of(some)
            keys.update(batch.keys)
            there.add(hasher(batch))
        yield compare(here, there, missing), len(keys), missing


def _batch_of(stored: list[StoredValue]) -> ValueBatch:
    keys, t_ms, step, value = zip(*stored, strict=True)
    return ValueBatch(keys, np.array(t_ms, np.int64), np.array(step, np.int64), np.array(value, np.float64))


def _first_missing(files: RunFiles, backend: ListsValues, missing: HashFile) -> list[str]:
    """Of the values that are missing, the first ones of the journal, or of so many as are searched for."""
    found = missing.read(at_most=_SEARCHED)
    records = records_with(found, files.journal, functools.cache(backend.metric_key), ValueHasher(backend.numbers))
    named = (f"{name} at step {record.step or 0}" for record in records for name in record.data)
    return list(islice(named, SHOWN))


def _value_differences(values: HashComparison, examples: Iterable[str]) -> Iterator[str]:
    if values.here != values.there:
        yield f"values: {values.here} here, {values.there} there"
    if values.missing:
        yield f"{values.missing} missing: {', '.join(examples)}{', …' if values.missing > SHOWN else ''}"
    if values.superfluous:
        yield f"{values.superfluous} that were not logged"
    if values.doubled:
        yield f"{values.doubled} stored more than once"


def _count_differences(journal: Audit, held: Audit) -> Iterator[str]:
    pairs = (
        ("status", journal.status, held.status),
        ("metrics", journal.metric_keys, held.metric_keys),
        ("values", journal.values, held.values),
        ("last record", journal.last_seq, held.last_seq),
    )
    for what, ours, theirs in pairs:
        if theirs not in (None, ours):
            yield f"{what}: {ours} here, {theirs} there"

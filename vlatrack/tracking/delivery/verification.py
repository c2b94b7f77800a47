"""Whether a tracker still has a finished run that it acknowledged: asked once, by counts, and remembered.

That is cheap: no value is read from a tracker, and the journal is not decoded. Only what looks like a loss is compared
value by value.
"""

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vlatrack.tracking.backends.base import (
    Audit,
    Backend,
    BackendConfig,
    ListsValues,
    RejectedError,
    RemoteDeletedError,
)
from vlatrack.tracking.backends.registry import BUILT_IN, connect
from vlatrack.tracking.delivery.audit import audit_run, configs_of
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.delivery.report import targets_of
from vlatrack.tracking.journal.history import first_start
from vlatrack.tracking.journal.records import Kind, Record, last_record, records_backwards
from vlatrack.tracking.privacy import write_private
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, Trust, untrusted

SAMPLED = 200
"""Records at the end of the journal whose metrics are looked for where a tracker tells the last step of each."""

RUNNING = "RUNNING"
"""The status of a run without an end."""
_IS_SERVER = re.compile(r"https?://|W&B|offline files")
"""Begins the name of a destination that is none of a runs folder's own stores."""
_METRICS_LINE = f'"kind":"{Kind.METRICS}"'.encode()
_KEY = b'":'
_KEYS_OF_A_LINE = len(Record.__dataclass_fields__)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What became of one backend of a run: `told` is a line for the user, `is_lost` says that it lacks something."""

    label: str
    told: str
    is_lost: bool = False
    could_be_asked: bool = True


def unverified(run_dir: Path, labels: Iterable[str]) -> list[str]:
    """Those backends of a completely delivered run that were not asked since its last record. One that the environment
    now sends elsewhere has lost nothing."""
    files = RunFiles(run_dir)
    known, now, found = _known(files), _state(files, labels), []
    for label, target in targets_of(run_dir).items():
        delivered_to = CursorFile(files.delivery, label).read().destination
        is_beside_it = target.options.get("tracking_uri") is None and not _IS_SERVER.match(delivered_to)
        is_there = target.unset is None and (target.destination.is_called(delivered_to) or is_beside_it)
        if label in now and label.rpartition("-")[0] in BUILT_IN and is_there and known.get(label) != now[label]:
            found.append(label)
    return found


def remember(run_dir: Path, labels: Iterable[str]) -> None:
    """These backends have everything, and are not asked again before the run goes on or is delivered elsewhere."""
    files = RunFiles(run_dir)
    if new := _state(files, labels):
        try:
            write_private(_file(files), json.dumps(_known(files) | new))
        except OSError as error:
            _log.info("%s: cannot be written (%s); the trackers are asked again next time", _file(files), error)


def verify(run_dir: Path, labels: Collection[str], *, trust: Trust = NOTHING) -> Iterator[Verdict]:
    """Ask these backends, if they are trusted, and remember those that have everything; yields what there is to say
    about the others."""
    for label, config in configs_of(run_dir, labels):
        if untrusted(config, RunFiles(run_dir).runs, trust=trust) is not None:
            continue
        try:
            lost = _lost(RunFiles(run_dir), label, config, trust)
        except RejectedError:  # offline files, which nobody can take away
            lost = None
        except RemoteDeletedError as deleted:  # told once: the person who did it knows
            yield Verdict(label, str(deleted))
            lost = None
        except Exception as error:  # the clients of the trackers raise whatever they like
            told = f"cannot be asked whether it still has the run: {one_line(error)}"
            yield Verdict(label, told, could_be_asked=False)
            continue
        if lost is None:
            remember(run_dir, [label])
        else:
            yield Verdict(label, f"has lost {lost}", is_lost=True)


def _lost(files: RunFiles, label: str, config: BackendConfig, trust: Trust) -> str | None:
    """What a backend has lost, and what is done about it; None for nothing. Value by value where it seems so by
    counts."""
    if not _seems_to_lack_something(files, label, config):
        return None
    (audit,) = audit_run(files.run_dir, [label], trust=trust)
    if audit.state == "unknown":
        return "all records, which are delivered again"
    if audit.values is not None and audit.values.missing:
        return f"{audit.values.missing:,} values, which are delivered again"
    has_no_end = audit.backend.status == RUNNING != audit.journal.status
    return "the end of the run, which is told again" if has_no_end else None


def _seems_to_lack_something(files: RunFiles, label: str, config: BackendConfig) -> bool:
    backend: Backend = connect(config, files.run_dir)
    held = backend.audit(first_start(files.journal))
    if held == Audit() or held.status == RUNNING:
        return True
    if CursorFile(files.delivery, label).read().dead_letters:
        return False  # what it refused it lacks, so that counts differ
    if held.values is not None and held.values < values_at_most(files.journal):
        return True
    ends = list(islice((r for r in records_backwards(files.journal) if r.kind == Kind.METRICS), SAMPLED))
    if held.last_seq is not None and ends and held.last_seq < ends[0].seq:
        return True
    if held.latest is None or not isinstance(backend, ListsValues):
        return False
    reached = {backend.metric_key(name): record.step or 0 for record in reversed(ends) for name in record.data}
    return any(held.latest.get(key, step - 1) < step for key, step in reached.items())


def values_at_most(journal: Path) -> int:
    """How many values a journal holds, found without decoding it: no fewer, and more only where equal ones, which a
    tracker may store once, or odd names count."""
    with journal.open("rb") as file:
        return sum(line.count(_KEY) - _KEYS_OF_A_LINE for line in file if _METRICS_LINE in line)


def _state(files: RunFiles, labels: Iterable[str]) -> dict[str, list[object]]:
    """What an answer holds for: the journal as far as it goes, and the tracker that has it."""
    last = last_record(files.journal)
    seq = -1 if last is None else last.seq
    return {label: [seq, CursorFile(files.delivery, label).read().destination] for label in labels}


def _known(files: RunFiles) -> dict[str, list[object]]:
    try:
        known = json.loads(_file(files).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        _log.warning("%s: damaged (%s); the trackers are asked again", _file(files), error)
        return {}
    return known if isinstance(known, dict) else {}


def _file(files: RunFiles) -> Path:
    return files.delivery / "verified.json"

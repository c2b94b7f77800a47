"""What a tracker backend is: about seven methods that know nothing of training, and the values they exchange."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from vlatrack.errors import VlatrackError
from vlatrack.metrics.grouping import grouped
from vlatrack.metrics.schema import sectioned
from vlatrack.tracking.journal.records import Record

Scalar = str | int | float | bool | None
NAMINGS = ("documented", "sections")
UNGROUPED = "ungrouped"
"""The naming of runs that an earlier release began with `documented`: every name as the journal has it."""
COMMIT_TAG = "vlatrack.commit"
DIGEST_TAGS = ("vlatrack.spec_hash", COMMIT_TAG)
"""Tags of a run that nobody reads, which trackers keep where their first screen does not show them."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


class RejectedError(VlatrackError):
    """The backend will never take this; trying again is of no use. Any other exception means: later, perhaps."""


class RemoteDeletedError(VlatrackError):
    """The remote run was deleted by a person, who may restore it; until then nothing can be delivered, nor is at
    fault. The text says what to do."""


@dataclass(frozen=True)
class BackendConfig:
    """One tracker of a run: its kind, how it names metrics, and its own options. No secrets: keys stay in the
    environment. `target` names the class of kind `custom`: `package.module:Class` or an entry point."""

    kind: str
    naming: str = "documented"
    options: Mapping[str, Scalar] = field(default_factory=dict)
    target: str | None = None
    started_with: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where the run was meant to go when it started, as far as the environment said so: `tracking_uri` and `experiment`
    of MLflow; `base_url`, `project`, `entity` and `mode` of W&B."""


@dataclass(frozen=True)
class DatasetInput:
    """The data of one split of a run: `source` says where it is from, `sha256` is the hexadecimal digest of it."""

    name: str
    source: str
    sha256: str
    split: str


@dataclass(frozen=True)
class RunStart:
    """A run as its journal's `start` record tells it; `t_ms` is Unix time in milliseconds."""

    uid: str
    name: str
    experiment: str
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    t_ms: int
    datasets: tuple[DatasetInput, ...] = ()
    group: str | None = None
    """What a tracker shows this run together with, inside its experiment: the runs of a sweep."""
    seq: int = 0
    """Its journal record: 0 of a new run, more of one that was resumed."""
    groups_metrics: bool = False
    """Of the first start: trackers have its metrics in groups; those of earlier releases have plain names."""

    @classmethod
    def of(cls, record: Record) -> "RunStart":
        data = record.data
        return cls(
            uid=record.run,
            name=data["name"],
            experiment=data["experiment"],
            params=data["params"],
            tags=data["tags"],
            t_ms=record.t_ms,
            datasets=tuple(DatasetInput(**fields) for fields in data.get("datasets", ())),
            group=data.get("group"),
            seq=record.seq,
            groups_metrics=data.get("groups_metrics") is True,
        )


@dataclass(frozen=True)
class RunFinish:
    """The end of a run; `reason` says why it did not finish."""

    status: Status
    reason: str | None
    t_ms: int

    @classmethod
    def of(cls, record: Record) -> "RunFinish":
        return cls(record.data["status"], record.data["reason"], record.t_ms)


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run, such as `checkpoint`; `seq` is its journal record."""

    name: str
    data: Mapping[str, Scalar]
    seq: int
    t_ms: int

    @classmethod
    def of(cls, record: Record) -> "RunEvent":
        return cls(record.data["name"], record.data["data"], record.seq, record.t_ms)


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact: where it lies, its name, which is its path inside the artifact (`a/b.bin`), its
    hexadecimal digest, and its size in bytes."""

    path: Path
    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Artifact:
    """A file or folder of the run directory under a name such as `checkpoints/epoch-3`.

    `sha256` is the hexadecimal digest of its content, file names included, as it is now; `folder` says whether it is
    one.
    """

    name: str
    folder: bool
    files: tuple[ArtifactFile, ...]
    sha256: str
    aliases: tuple[str, ...] = ()
    """Further names that point at this version, such as `best`."""
    table: str | None = None
    """The name of the file in it that is a table of rows, for backends that show such: JSON with `columns` and `data`,
    a list of rows. A cell that is the name of a video in the artifact stands for that."""


@dataclass(frozen=True)
class Position:
    """The first sequence numbers that a backend still wants."""

    metrics_from: int
    others_from: int


@dataclass(frozen=True)
class Destination:
    """Which tracker a delivery is for, as its cursor remembers it: another one has nothing of the run yet."""

    name: str = ""
    """Tells it from every other one, without secrets; empty where there is only one."""
    is_temporary: bool = False
    """It stands in until the tracker can be used, and is not needed for a run that the tracker has."""
    former_names: tuple[str, ...] = ()
    """What earlier releases called it."""

    def is_called(self, name: str) -> bool:
        """Whether a cursor with this name is of this destination."""
        return name in (self.name, *self.former_names)


ONLY_ONE = Destination()


@dataclass(frozen=True)
class Rejection:
    """A part of a record that a backend will never take."""

    seq: int
    what: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """What the backend itself says that it holds; None is what it cannot tell, or not without reading all values."""

    status: str | None = None
    """RUNNING, FINISHED, FAILED or KILLED."""
    metric_keys: int | None = None
    values: int | None = None
    """Metric values; equal ones (name, time, step, value) count once."""
    last_seq: int | None = None
    """Highest sequence number of a metrics record."""
    latest: Mapping[str, int] | None = field(default=None, compare=False)
    """The highest step of each metric, under the tracker's own key."""


class Backend(Protocol):
    """A tracker. Every call may be repeated after a crash and must not store anything twice.

    All methods raise `RejectedError` for what can never be delivered, and anything else for what may work later.
    What a method raises stops nothing else: records of one kind are delivered while another kind fails, and so is the
    end of the run, which is told again if something is delivered after it.
    """

    url: str | None
    """Where a person finds the run, once it is open."""

    def open(self, start: RunStart, acknowledged: int) -> Position:
        """Find or create the remote run, of which `start` is the first start, and nothing more: a name or a value that
        the tracker refuses must not keep metrics away. `acknowledged` is the last seq up to which all is delivered, or
        -1."""

    def describe(self, start: RunStart) -> list[Rejection]:
        """Mark the run running, unless it has ended since, and store its params, tags, datasets and group; returns the
        parts that were refused. Called for the first start and for each resume."""

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        """Store records of kind `metrics`, ascending in seq; returns the parts that were refused."""

    def put_artifact(self, artifact: Artifact) -> None:
        """Store the artifact unless the same content is there under its name."""

    def alert(self, title: str, text: str, record: Record) -> None:
        """Tell the people who watch the run."""

    def finish(self, finish: RunFinish) -> None:
        """Set the status; returns once everything delivered before is stored for good."""

    def audit(self, start: RunStart) -> Audit:
        """What is stored by now. Needs no `open` and changes nothing; an absent run is an empty `Audit`."""

    def close(self) -> None:
        """Close connections and end processes; the remote run keeps its status."""


@runtime_checkable
class TakesEvents(Protocol):
    """What a backend offers besides `Backend` if it can show what happened in a run, also without an alert."""

    def event(self, event: RunEvent) -> None:
        """Store the event, unless it is there."""


@runtime_checkable
class Buffers(Protocol):
    """What a backend offers besides `Backend` if it stores records some time after `deliver` returned."""

    def stored(self) -> int | None:
        """The last record of metrics up to which the tracker holds everything; None: all that was delivered.

        Called often; how often it asks the tracker is its own affair. Raises if the records no longer get there.
        """


@runtime_checkable
class UploadsAside(Protocol):
    """What a backend has besides `Backend` if another thread may call `put_artifact` meanwhile: a large file on a slow
    network then keeps nothing else waiting. `finish` may be called meanwhile, too; it may wait for the upload where
    the tracker takes nothing after the end, as W&B."""

    uploads_aside: Literal[True]


class StoredValue(NamedTuple):
    """One value of a metric as a tracker has it, under the tracker's own key; `t_ms` is Unix time in milliseconds."""

    key: str
    t_ms: int
    step: int
    value: float


@dataclass(frozen=True)
class NumberFormat:
    """How a tracker keeps numbers: as 32-bit floats or as they are, and what for +Infinity."""

    single: bool = False
    infinity: float = math.inf


@runtime_checkable
class ListsValues(Protocol):
    """What a backend offers besides `Backend` if it can list the values that it stores: an audit then finds each that
    is missing, and each that is too many."""

    numbers: NumberFormat

    def metric_key(self, name: str) -> str:
        """The key under which `deliver` stores a metric of this documented name."""

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        """All values of the run, in any order; none of a run that is not there. Needs no `open`, changes nothing, and
        never holds more than a page of them in memory."""


@runtime_checkable
class TakesValuesAgain(Protocol):
    """What a backend offers besides `Backend` if it takes values that it has lost, although it has later ones."""

    def deliver_again(self, records: Iterable[Record], *, at_most: int, next_seq: int) -> list[Rejection]:
        """Store these parts of records, ascending in seq, `at_most` so many; the run is open, and over. A resume of it
        would begin with record `next_seq`. Returns the parts that were refused."""


@runtime_checkable
class StartsAnew(Protocol):
    """What a backend offers besides `Backend` if the tracker is repaired by delivering the whole run anew."""

    def start_anew(self) -> None:
        """Remove what is there of the run; nothing is open."""


def deliver_or_halve(
    deliver: Callable[[Sequence[Record]], list[Rejection]], records: Sequence[Record]
) -> list[Rejection]:
    """Deliver records of metrics; where they are refused for good together, find the bad ones by halving."""
    try:
        return deliver(records)
    except RejectedError as verdict:
        if len(records) == 1:
            return [Rejection(records[0].seq, records[0].kind, str(verdict))]
    half = len(records) // 2
    return deliver_or_halve(deliver, records[:half]) + deliver_or_halve(deliver, records[half:])


def metric_name(name: str, naming: str) -> str:
    """A name of the journal in the naming of a backend: `documented`, `sections` or `ungrouped`."""
    match naming:
        case "documented":
            return grouped(name)
        case "sections":
            return sectioned(name)
    assert naming == UNGROUPED, naming
    return name


def scalar_text(value: Any) -> str:
    """A parameter as the YAML writes it: null, true, 0.1."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def remote_path(artifact: Artifact, file: ArtifactFile) -> str:
    """Where a file of an artifact stands among all files of the run: `spec.yaml`, `checkpoints/epoch-3/model.bin`.

    A single file keeps the artifact's name if that ends in its own, else it lies in a folder of that name.
    """
    is_named_so = not artifact.folder and artifact.name.rpartition("/")[2] == file.name
    return artifact.name if is_named_so else f"{artifact.name}/{file.name}"

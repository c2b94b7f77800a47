"""The contract of `vlatrack.tracking.backends.base.Backend` as tests that any backend can run against itself.

Subclass `BackendContract` as a class `Test…` in a test file, say how to connect to your backend and how to read what it
stored, and run pytest. Nothing here imports pytest: each test asks for its `tmp_path`.
"""

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlatrack.testing.example_run import ExampleRun
from vlatrack.testing.odd_names import ODD_NAMES, random_names
from vlatrack.tracking.artifacts import read_artifact
from vlatrack.tracking.backends.base import (
    Audit,
    Backend,
    DatasetInput,
    ListsValues,
    Position,
    RunFinish,
    RunStart,
)
from vlatrack.tracking.delivery.audit import compared_values, journal_audit
from vlatrack.tracking.journal.records import Kind, Record
from vlatrack.tracking.run_files import RunFiles


@dataclass(frozen=True)
class Row:
    """One stored value of a metric, under its documented name; `t_ms` is Unix time in milliseconds."""

    name: str
    step: int
    t_ms: int
    value: float


@dataclass(frozen=True)
class Stored:
    """Everything that a backend stored of the runs of one test."""

    runs: int
    status: str | None
    rows: Sequence[Row]
    files: Mapping[str, str] | None = None
    """Hexadecimal SHA-256 of each stored file by its path (`remote_path`); None if the backend keeps no files."""


class BackendContract(ABC):
    """What every backend must do; each test is a whole run, or several."""

    relative_error = 0.0
    """How much a stored value may differ: 1e-7 for a backend of 32-bit floats."""
    infinity = math.inf
    """What the backend stores for +Inf."""

    @abstractmethod
    def connect(self, run_dir: Path) -> Backend:
        """A new connection for the run in `run_dir`; what earlier ones stored is still there."""

    @abstractmethod
    def stored(self, run_dir: Path) -> Stored:
        """What is stored now, read past the backend; called when every connection is closed."""

    def test_a_run_arrives_with_its_names_steps_times_and_values(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(20)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_a_whole_replay_adds_nothing(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(20)
        run.finish("FINISHED")
        self._deliver(run)
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_what_was_delivered_but_not_acknowledged_may_come_again(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(30)
        with contextlib.closing(self.connect(run.dir)) as backend:
            position = backend.open(run.start_value(), -1)
            backend.describe(run.start_value())
            first = run.metrics()[:10]
            _deliver_metrics(backend, position, first)
            _deliver_metrics(backend, position, first)  # the answer was lost
            _deliver_metrics(backend, position, run.metrics()[10:20])
        run.finish("FINISHED")
        self._deliver(run, acknowledged=first[4].seq)  # the process died, its cursor is behind
        self._expect(run, "FINISHED")

    def test_nan_and_infinities_are_kept(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        for step, value in enumerate((1.0, math.nan, math.inf, -math.inf, 2.0)):
            run.append(Kind.METRICS, {"train_closs": value}, step=step)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_names_of_any_letters_come_back(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.append(Kind.METRICS, {"val ünï/字": 1.0, "a-b:c=d, e%": 2.0, "train_l1_loss_action_5": 3.0}, step=1)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_every_end_of_a_run_is_told(self, tmp_path: Path) -> None:
        for status in ("FAILED", "KILLED"):
            run = ExampleRun(tmp_path / status.lower(), uid=f"contract-{status.lower()}")
            run.log(1)
            run.finish(status, reason="a reason")
            self._deliver(run)
            assert self.stored(run.dir).status == status

    def test_a_resumed_run_continues_the_same_remote_run(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(10)
        run.finish("KILLED", reason="out of time")
        acknowledged = self._deliver(run)
        run.start(epochs=2)
        run.log(10, first_step=5)  # from a checkpoint before the last logged step
        run.finish("FINISHED")
        self._deliver(run, acknowledged=acknowledged)
        self._expect(run, "FINISHED")

    def test_a_run_of_a_group_is_one_run_also_when_it_is_opened_again(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path, group="sweep")
        run.log(3)
        run.finish("FINISHED")
        self._deliver(run)
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_files_are_put_once_and_again_when_they_change(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        folder = run.dir / "tokenizer"
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"first")
        (run.dir / "spec.yaml").write_bytes(b"a: 1\n")
        with contextlib.closing(self.connect(run.dir)) as backend:
            backend.open(run.start_value(), -1)
            backend.describe(run.start_value())
            for content in (b"first", b"first", b"second"):
                (folder / "weights.bin").write_bytes(content)
                backend.put_artifact(read_artifact("tokenizer", "tokenizer", run.dir))
                backend.put_artifact(read_artifact("spec.yaml", "spec.yaml", run.dir))
            run.finish("FINISHED")
            backend.finish(RunFinish.of(run.records()[-1]))
        files = self.stored(run.dir).files
        expected = {"spec.yaml": _digest(b"a: 1\n"), "tokenizer/weights.bin": _digest(b"second")}
        assert files is None or dict(files) == expected

    def test_an_alert_may_come_twice_and_disturbs_nothing(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(2)
        run.append(Kind.EVENT, {"name": "health", "data": {}, "alert": True})
        run.log(2, first_step=2)
        run.finish("FINISHED")
        self._deliver(run)
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_the_audit_agrees_with_the_journal(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        with contextlib.closing(self.connect(run.dir)) as backend:
            assert backend.audit(run.start_value()) == Audit()
        run.log(5)
        run.finish("FINISHED")
        self._deliver(run)
        with contextlib.closing(self.connect(run.dir)) as backend:
            _assert_agree(backend.audit(run.start_value()), journal_audit(run.dir))
        self._expect(run, "FINISHED")  # asking has changed nothing

    def test_the_audit_counts_equal_values_once(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        for value in (math.nan, math.nan, math.inf, 0.0, 0.0, 1.0):
            run.append(Kind.METRICS, {"train_closs": value}, step=5, t_ms=1_700_000_000_000)
        run.finish("FINISHED")
        self._deliver(run)
        with contextlib.closing(self.connect(run.dir)) as backend:
            _assert_agree(backend.audit(run.start_value()), journal_audit(run.dir))

    def test_odd_names_of_metrics_come_back(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.append(Kind.METRICS, {name: index / 7 for index, name in enumerate(ODD_NAMES)}, step=1)
        run.log(3, first_step=2)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_ten_thousand_random_names_of_metrics_come_back(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        names = random_names(10_000)
        for first in range(0, len(names), 500):
            run.append(Kind.METRICS, dict.fromkeys(names[first : first + 500], float(first)), step=first)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_steps_as_large_as_an_integer_of_64_bits_come_back(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        for step in (0, 2**31, 2**53 + 1, 2**63 - 1):
            run.append(Kind.METRICS, {"train_closs": 0.5}, step=step)
        run.finish("FINISHED")
        self._deliver(run)
        self._expect(run, "FINISHED")

    def test_odd_params_tags_and_datasets_are_stored_or_refused_and_keep_no_metrics_away(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        start = replace(
            run.start_value(),
            name="n" * 1000,
            params={name: name for name in ODD_NAMES} | {"long": "x" * 100_000},
            tags={name: name for name in ODD_NAMES} | {"long": "x" * 100_000},
            datasets=tuple(DatasetInput(name, name, "0" * 64, name) for name in ODD_NAMES),
            group="g" * 1000,
        )
        run.log(5)
        run.finish("FAILED", reason="字\n" * 10_000)
        with contextlib.closing(self.connect(run.dir)) as backend:
            position = backend.open(start, -1)
            for rejection in backend.describe(start):
                assert rejection.reason.strip(), rejection
            _deliver_metrics(backend, position, run.metrics())
            backend.finish(RunFinish.of(run.records()[-1]))
        self._expect(run, "FAILED")

    def test_an_odd_alert_arrives_before_the_metrics_that_were_logged_first(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(5)
        run.append(Kind.EVENT, {"name": "字" * 300, "data": {}, "alert": True})
        run.finish("FINISHED")
        with contextlib.closing(self.connect(run.dir)) as backend:
            position = backend.open(run.start_value(), -1)
            event = run.records()[-2]
            backend.alert(event.data["name"], "why\n" * 1000, event)
            _deliver_metrics(backend, position, run.metrics())
            assert backend.describe(run.start_value()) == []
            backend.finish(RunFinish.of(run.records()[-1]))
        self._expect(run, "FINISHED")

    def test_what_comes_after_the_end_is_stored_and_the_end_stays(self, tmp_path: Path) -> None:
        run = ExampleRun(tmp_path)
        run.log(5)
        run.finish("FINISHED")
        acknowledged = self._deliver(run)
        (run.dir / "late.txt").write_bytes(b"late")
        with contextlib.closing(self.connect(run.dir)) as backend:
            backend.open(run.start_value(), acknowledged)
            backend.put_artifact(read_artifact("late.txt", "late.txt", run.dir))
            assert backend.describe(run.start_value()) == []
            backend.finish(RunFinish.of(run.records()[-1]))
        files = self.stored(run.dir).files
        assert files is None or dict(files) == {"late.txt": _digest(b"late")}
        self._expect(run, "FINISHED")

    def test_an_audit_finds_each_value_where_the_backend_lists_them(self, tmp_path: Path) -> None:
        run, now_ms = ExampleRun(tmp_path), 1_700_000_000_000
        for t_ms in (now_ms, now_ms + 1, now_ms, now_ms - 1, now_ms + 1):  # equal ones, with others in between
            run.append(Kind.METRICS, {"train_closs": 1 / 3, "val ünï/字": 0.0}, step=5, t_ms=t_ms)
        for step, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 1e-300, 3, 1e16 + 2)):
            run.append(Kind.METRICS, {"train_loss_ct": value}, step=step, t_ms=now_ms)
        run.finish("FINISHED")
        self._deliver(run)
        with contextlib.closing(self.connect(run.dir)) as backend:
            if isinstance(backend, ListsValues):
                assert isinstance(backend.values(run.start_value()), Iterator), "a list of all would fill the memory"
                with compared_values(RunFiles(run.dir), backend, run.start_value()) as (values, keys, _):
                    assert (values.missing, values.superfluous, values.doubled, keys) == (0, 0, 0, 3)
                run.start(epochs=2)
                run.append(Kind.METRICS, {"train_loss_ct": 0.5}, step=9)
                with compared_values(RunFiles(run.dir), backend, run.start_value()) as (values, _, _):
                    assert (values.missing, values.superfluous) == (1, 0)

    def _deliver(self, run: ExampleRun, *, acknowledged: int = -1) -> int:
        """Deliver as the delivery process does, and return the last acknowledged sequence number."""
        records = run.records()
        with contextlib.closing(self.connect(run.dir)) as backend:
            position = backend.open(run.start_value(), acknowledged)
            for record in records:
                is_wanted = record.seq >= position.others_from
                match record.kind:
                    case Kind.METRICS:
                        _deliver_metrics(backend, position, [record])
                    case Kind.START if is_wanted:
                        assert backend.describe(RunStart.of(record)) == []
                    case Kind.EVENT if is_wanted:
                        backend.alert(record.data["name"], "", record)
            if records[-1].kind == Kind.FINISH:
                backend.finish(RunFinish.of(records[-1]))
        return records[-1].seq

    def _expect(self, run: ExampleRun, status: str) -> None:
        stored = self.stored(run.dir)
        assert (stored.runs, stored.status) == (1, status)
        expected = [Row(n, r.step or 0, r.t_ms, v) for r in run.metrics() for n, v in r.data.items()]
        assert Counter(map(_place, stored.rows)) == Counter(map(_place, expected))
        for row, wanted in zip(sorted(stored.rows, key=_place), sorted(expected, key=_place), strict=True):
            assert self._same(row.value, wanted.value), f"{row} is not {wanted}"

    def _same(self, value: float, wanted: float) -> bool:
        if math.isinf(wanted):
            return value == math.copysign(self.infinity, wanted)
        return math.isnan(value) if math.isnan(wanted) else math.isclose(value, wanted, rel_tol=self.relative_error)


def _deliver_metrics(backend: Backend, position: Position, records: Sequence[Record]) -> None:
    wanted = [record for record in records if record.seq >= position.metrics_from]
    if wanted:
        assert backend.deliver(wanted) == []


def _assert_agree(held: Audit, journal: Audit) -> None:
    assert held != Audit()
    for name in ("status", "metric_keys", "values", "last_seq"):
        assert getattr(held, name) in (None, getattr(journal, name)), name


def _place(row: Row) -> tuple[str, int, int]:
    return (row.name, row.step, row.t_ms)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

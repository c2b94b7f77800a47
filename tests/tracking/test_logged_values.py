"""What a training and a notebook pass to a run: nothing of it breaks the training, the journal, or a later reader."""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from happens import happens
from hypothesis import given, settings
from hypothesis import strategies as st

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.encoding import encode
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Record, decode_record, read_records
from vlatrack.tracking.run import TrackedRun, run_status, start_run

NOW_MS = 1_800_000_000_000
NOT_UTF8 = os.fsdecode(b"weights-\xff")
"""A file name as Python reads it from the disk."""


class PanicError(BaseException):
    """What an extension written in Rust raises when it fails."""


class Broken:
    """Whatever Python asks of it raises this."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _raise(self, *_: object) -> Any:
        raise self._error

    __float__ = __int__ = __str__ = __repr__ = __eq__ = _raise
    __hash__ = object.__hash__


class BrokenMapping(dict):
    def items(self) -> Any:
        raise ValueError("gone")


def strictly(path: Path) -> list[Record]:
    """The records of a journal, of which every line is UTF-8 and JSON to the letter, and can be sent as UTF-8."""
    lines = path.read_bytes().decode("utf-8").splitlines(keepends=True)
    for line in lines:
        fields = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
        assert type(fields["t_ms"]) is int
        assert -(2**63) <= (fields["step"] or 0) < 2**63
    records = [decode_record(line.encode()) for line in lines]
    assert records == list(read_records(path)) or any(_has_nan(record) for record in records)
    assert [record.seq for record in records] == list(range(len(records)))
    return records


def _has_nan(record: Record) -> bool:
    return any(isinstance(value, float) and math.isnan(value) for value in record.data.values())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrackedRun]:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    yield run
    run.finish("FINISHED")


def logged(run: TrackedRun) -> list[Record]:
    return [record for record in strictly(run.path / "journal.jsonl") if record.kind == "metrics"]


@happens(
    "item",
    "the code of a value that is logged raises, whatever it raises",
    "that value is left out with one warning, the others are logged",
)
@pytest.mark.parametrize("error", [ValueError("bad\nvalue"), PanicError(), PanicError(NOT_UTF8)])
def test_logging_never_raises_whatever_the_code_of_a_value_raises(
    run: TrackedRun, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    broken = Broken(error)
    unreadable = Broken(Broken(error))  # type: ignore[arg-type]  # not even an exception
    for _ in range(2):
        run.log({"a": 1.0, "bad": broken, broken: 2.0}, step=1)  # type: ignore[dict-item]
        run.log({"a": 2.0, "worse": unreadable}, step=broken)  # type: ignore[dict-item, arg-type]
        run.log(BrokenMapping(a=3.0), step=2)
        run.log({"a": 4.0}, step=3, t_ms=broken)  # type: ignore[arg-type]
    assert [record.data for record in logged(run)] == 2 * [{"a": 1.0}, {"a": 2.0}, {}, {"a": 4.0}]
    said = [message.partition(" (")[0] for message in caplog.messages]
    assert said == [
        "metric bad is not logged: it is no number",
        "a metric is not logged: its name is no text",
        "metric worse is not logged: it is no number",
        "a step is no whole number: its metrics stand at the step before",
        "metrics are not logged",
        "a t_ms is no time: its metrics stand at the present",
    ]
    assert not any("\n" in message or "\udcff" in message for message in caplog.messages)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_the_code_of_a_value_is_raised(run: TrackedRun, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run.log({"a": Broken(error())}, step=1)  # type: ignore[dict-item]
    run.log({"a": 1.0}, step=2)
    assert [record.step for record in logged(run)] == [2]


@happens(
    "item",
    "a step is no whole number of 64 bits",
    "its values are logged at the step before, with one warning",
)
def test_a_step_that_no_tracker_can_store_is_refused(run: TrackedRun, caplog: pytest.LogCaptureFixture) -> None:
    good: list[Any] = [5, -(2**63), 2**63 - 1, np.int32(6), torch.tensor(7), np.float64(8), True]
    bad: list[Any] = [2**63, -(2**63) - 1, 10**5000, 0.5, math.nan, math.inf, "4", None, [1], torch.ones(2)]
    for step in [*good, 9, *bad]:
        run.log({"a": 1.0}, step=step)
    assert [record.step for record in logged(run)] == [*(int(step) for step in good), 9, *[9] * len(bad)]
    assert run.last_step == 9
    assert len(caplog.messages) == 1


@happens(
    "item",
    "the t_ms of values is NaN, text, or no time between 1970 and 9999",
    "they are logged with the present time, with one warning",
)
def test_a_time_that_is_none_is_refused(run: TrackedRun, caplog: pytest.LogCaptureFixture) -> None:
    before = NOW_MS // 2
    good: list[Any] = [0, NOW_MS, NOW_MS + 0.75, np.int64(NOW_MS), torch.tensor(NOW_MS), 253_402_300_799_999]
    now = datetime.datetime.now(datetime.UTC)
    bad: list[Any] = [math.nan, math.inf, -1, -0.5 - 1, 2**63, 10**5000, "1", now, [1], torch.ones(2)]
    for t_ms in [*good, *bad]:
        run.log({"a": 1.0}, step=1, t_ms=t_ms)
    times = [record.t_ms for record in logged(run)]
    assert times[: len(good)] == [int(t_ms) for t_ms in good]
    assert all(before < t_ms < 2 * NOW_MS for t_ms in times[len(good) :])
    assert len(caplog.messages) == 1


def test_values_that_another_thread_changes_meanwhile_are_logged_as_they_were(run: TrackedRun) -> None:
    metrics = {"a": 1.0}

    class Changing:
        def __float__(self) -> float:
            metrics["new"] = 3.0
            return 2.0

    metrics["b"] = Changing()  # type: ignore[assignment]
    run.log(metrics, step=1)
    assert [record.data for record in logged(run)] == [{"a": 1.0, "b": 2.0}]


@happens(
    "item",
    "a name, param, tag, event or failure holds bytes that are not UTF-8, a NUL or another control character",
    "they stand in the journal and at every tracker as escapes such as \\udcff, and different names stay different",
)
def test_text_that_cannot_be_sent_is_escaped_wherever_it_is_given(tmp_path: Path) -> None:
    bad = f"{NOT_UTF8}\0\x1b[2J"
    shown = r"weights-\udcff\u0000\u001b[2J"
    texts = {"name": bad, "group": bad, "params": {bad: bad}, "tags": {bad: bad}}
    run = start_run("exp", runs=tmp_path / "runs", backends=[], **texts)  # type: ignore[arg-type]
    with contextlib.suppress(FileNotFoundError), run:
        run.log({bad: 1.0, shown: 2.0, f"\\{bad}": 3.0, "two\nlines\t": 4.0}, step=1)
        run.event(bad, {bad: bad}, alert=True)
        (run.path / "a.txt").write_text("a")
        run.log_artifact("a.txt", name="a.txt", aliases=[bad])
        raise FileNotFoundError(bad)
    start, metrics, event, artifact, end = (record.data for record in strictly(run.path / "journal.jsonl"))
    assert (start["name"], start["group"]) == (shown, shown)
    assert start["params"] == start["tags"] == {shown: shown}
    assert list(metrics.values()) == [1.0, 2.0, 3.0, 4.0]
    assert list(metrics)[::3] == [shown, "two\nlines\t"]
    assert (event["name"], event["data"], event["alert"]) == (shown, {shown: shown}, True)
    assert artifact["aliases"] == [shown]
    assert end["reason"] == f"FileNotFoundError: {shown}"


def test_a_failure_that_has_no_text_still_ends_its_run(tmp_path: Path) -> None:
    class NamelessError(Exception):
        def __str__(self) -> str:
            raise PanicError

    with pytest.raises(NamelessError), start_run("exp", runs=tmp_path / "runs", backends=[]) as run:
        raise NamelessError
    assert (run_status(run.path).status, run_status(run.path).reason) == ("FAILED", "NamelessError")


@happens(
    "item",
    "a run is finished with a status that does not exist, such as DONE",
    "one line names those that do; the run goes on, or is FAILED where a with block ends by that",
)
def test_a_status_that_does_not_exist_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    told = "status 'DONE': a run ends as one of FINISHED, FAILED, KILLED"
    with pytest.raises(TrackerError, match=told):
        run.finish("DONE")  # type: ignore[arg-type]
    for wrong in ("completed", "finished", None, ["FINISHED"]):
        with pytest.raises(TrackerError, match="FINISHED, FAILED, KILLED"):
            run.end(wrong)  # type: ignore[arg-type]
    with pytest.raises(TrackerError, match="reason: a value of type ValueError is no text"):
        run.finish("FAILED", reason=ValueError("bad"))  # type: ignore[arg-type]
    with pytest.raises(TrackerError, match="t_ms: 'now' is no time"):
        run.finish("FAILED", t_ms="now")  # type: ignore[arg-type]
    run.log({"a": 1.0}, step=1)
    assert run_status(run.path).status == "RUNNING"
    run.finish("FINISHED")
    assert [record.kind for record in strictly(run.path / "journal.jsonl")] == ["start", "metrics", "finish"]
    with pytest.raises(TrackerError), start_run("exp", runs=tmp_path / "runs", backends=[]) as run:
        run.finish("DONE")  # type: ignore[arg-type]
    status = run_status(run.path)
    assert (status.status, status.reason) == ("FAILED", f"TrackerError: {told}")


def test_names_that_trackers_keep_for_themselves_are_logged(run: TrackedRun) -> None:
    names = ("train_step", "_step", "_timestamp", "_runtime", "", "n" * 600, "two\nlines", "字")
    run.log(dict.fromkeys(names, 1.0), step=1)
    assert [record.data for record in logged(run)] == [dict.fromkeys(names, 1.0)]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("e", {"a": {1, 2}}, r"event e\['a'\]: a value of type set cannot be kept"),
        ("e", {1: 2}, "event e: the key 1 is no text"),
        ("e", [1], "event e: a value of type list is no mapping"),
        ("e", BrokenMapping(), r"event e: a value of type BrokenMapping that cannot be read \(ValueError: gone\)"),
        (5, {}, "event 5: its name is no text"),
    ],
)
def test_an_event_that_cannot_be_kept_is_one_line(run: TrackedRun, name: Any, data: Any, told: str) -> None:
    with pytest.raises(TrackerError, match=told):
        run.event(name, data)
    run.event("next", {"nan": math.nan, "n": np.int64(3), "list": [1, "字"], "none": None})
    _, event = strictly(run.path / "journal.jsonl")
    assert event.data["data"] == {"nan": "NaN", "n": 3, "list": '[1, "字"]', "none": None}


texts = st.text(st.characters(exclude_categories=[]), max_size=20)  # surrogates and control characters too
values = st.one_of(
    st.floats(),
    st.integers(),
    texts,
    st.none(),
    st.booleans(),
    st.binary(),
    st.lists(st.floats()),
    st.complex_numbers(),
)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackedRun]:
    """A run for many examples: a start for each would take most of the time."""
    run = start_run("exp", runs=tmp_path_factory.mktemp("values") / "runs", backends=[])
    yield run
    run.finish("FINISHED")
    strictly(run.path / "journal.jsonl")


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(metrics=st.dictionaries(st.one_of(texts, st.integers()), values), step=values, t_ms=values, name=texts)
def test_every_line_of_the_journal_is_valid_whatever_is_logged(
    long_run: TrackedRun, metrics: Mapping[Any, Any], step: Any, t_ms: Any, name: str
) -> None:
    path = long_run.path / "journal.jsonl"
    begin = path.stat().st_size
    long_run.log(metrics, step=step, t_ms=t_ms)
    long_run.log({name: 0.5}, step=1)
    long_run.event(name, {name: name})
    lines = path.read_bytes()[begin:].splitlines()
    assert len(lines) == 3
    for line in lines:
        fields = json.loads(line.decode("utf-8"), parse_constant=lambda name: pytest.fail(name))
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
        decode_record(line)
    names = [name for name, value in metrics.items() if isinstance(value, float | int)]
    assert len(json.loads(lines[0])["data"]) == len(set(map(str, names)))


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(st.lists(st.text("\\u0dcf\udcff\0a", max_size=9), unique=True, max_size=9))
def test_different_names_stay_different(names: list[str]) -> None:
    stored = json.loads(encode({name: index for index, name in enumerate(names)}))
    assert list(stored.values()) == list(range(len(names)))
    assert "\udcff" not in "".join(stored)


def test_text_with_many_backslashes_is_written_in_no_time(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.jsonl", run="r", writer="trainer")
    name = "\\" * 200_000 + "u"
    journal.append("event", {"name": name, name: "\udcff"})
    journal.close()
    assert [record.data for record in strictly(tmp_path / "journal.jsonl")] == [{"name": name, name: r"\udcff"}]


class UnhashableText(str):
    __hash__ = None  # type: ignore[assignment]


class Named:
    def __str__(self) -> str:
        return UnhashableText("named")


def test_a_name_whose_text_is_of_a_class_of_its_own_is_logged_as_plain_text(run: TrackedRun) -> None:
    run.log({"a": 1.0, Named(): 2.0}, step=1)  # type: ignore[dict-item]
    assert [record.data for record in logged(run)] == [{"a": 1.0, "named": 2.0}]

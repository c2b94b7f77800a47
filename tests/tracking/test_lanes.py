"""No item blocks another: metrics, params, artifacts, alerts and the end of a run travel by themselves."""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from happens import happens
from memory_tracker import Memory, Run

from vlatrack.tracking.backends.base import Artifact, Rejection, RunEvent, RunFinish, RunStart
from vlatrack.tracking.delivery import backoff, tail
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.records import Record

Eventually = Callable[..., None]


class Faulty(Memory):
    """What its `faults` name fails: a method, or the seq of a record of metrics."""

    def __init__(self, *faults: str | int) -> None:
        super().__init__()
        self.faults = set(faults)

    def describe(self, start: RunStart) -> list[Rejection]:
        self._fail_at("describe")
        return super().describe(start)

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        self._fail_at("deliver", *(record.seq for record in records))
        return super().deliver(records)

    def put_artifact(self, artifact: Artifact) -> None:
        self._fail_at("put_artifact", artifact.name)
        super().put_artifact(artifact)

    def alert(self, title: str, text: str, record: Record) -> None:
        self._fail_at("alert")
        super().alert(title, text, record)

    def finish(self, finish: RunFinish) -> None:
        self._fail_at("finish")
        super().finish(finish)

    def deliver_again(self, records: Iterable[Record], *, at_most: int, next_seq: int) -> list[Rejection]:
        return self.deliver(list(records))

    def _fail_at(self, *what: str | int) -> None:
        if fault := self.faults.intersection(what):
            raise PermissionError(f"refused at {fault.pop()}")


class BufferingFaulty(Faulty):
    """It takes nothing out of turn."""

    def stored(self) -> None:
        return None


class ShowsEvents(Faulty):
    """It shows events together with metrics."""

    def event(self, event: RunEvent) -> None:
        self.alerts.append(event.name)


class SlowUploads(Memory):
    """Its uploads go on until they are told to end."""

    uploads_aside: Literal[True] = True

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Event()

    def put_artifact(self, artifact: Artifact) -> None:
        self.may_end.wait(60)
        super().put_artifact(artifact)


@pytest.fixture
def run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with one of everything, that has ended."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.01)
    monkeypatch.setattr(tail, "POLL_S", 0.001)
    run = Run(run_dir)
    for name in ("first.txt", "second.txt"):
        (run_dir / name).write_text(name)
        run.append("artifact", {"name": name, "place": name, "sha256": "", "files": {}})
    run.log(range(20))
    run.append("event", {"name": "health", "data": {"step": 3}, "alert": True})
    run.log(range(20, 30))
    run.finish()
    return run


def arrived(memory: Memory) -> dict[str, bool]:
    """What the tracker has all of."""
    return {
        "describe": len(memory.starts) == 1,
        "deliver": len(memory.rows) == 30,
        "put_artifact": sorted(artifact.name for artifact in memory.artifacts) == ["first.txt", "second.txt"],
        "alert": memory.alerts == ["health (step: 3)"],
        "finish": memory.statuses[-1:] == ["FINISHED"],
    }


@happens(
    "item", "metrics, params, files, alerts or the end of a run cannot be delivered", "all others arrive meanwhile"
)
@pytest.mark.parametrize("fault", ["describe", "deliver", "put_artifact", "alert", "finish"])
def test_what_cannot_be_delivered_keeps_nothing_else_waiting_and_arrives_later(
    run: Run, fault: str, eventually: Eventually
) -> None:
    memory = Faulty(fault)
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    others = [what for what in arrived(memory) if what != fault]
    eventually(lambda: all(arrived(memory)[what] for what in others))
    assert not delivery.finished
    eventually(lambda: f"refused at {fault}" in str(run.cursor_file.read().reason))
    memory.faults.clear()
    thread.join(60)
    assert delivery.finished
    assert arrived(memory) == dict.fromkeys(arrived(memory), True)
    cursor = run.cursor_file.read()
    assert (cursor.seq, cursor.is_all, cursor.reason, cursor.dead_letters) == (34, True, None, 0)


def test_one_file_that_fails_keeps_no_other_file_waiting(run: Run, eventually: Eventually) -> None:
    memory = Faulty("first.txt")
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: memory.statuses[-1:] == ["FINISHED"])
    assert [artifact.name for artifact in memory.artifacts] == ["second.txt"]
    eventually(lambda: run.cursor_file.read().reason == "artifact: PermissionError: refused at first.txt")
    eventually(lambda: run.cursor_file.read().delivered_of(35) == 34)
    run.stopping.set()
    thread.join(60)
    assert [left.seq for left in run.cursor_file.read().set_aside] == [1]

    run.stopping.clear()
    memory.faults.clear()
    assert run.deliver(lambda: memory).is_all
    assert sorted(memory.rows) == [*range(3, 23), *range(24, 34)]
    assert [artifact.name for artifact in memory.artifacts] == ["second.txt", "first.txt"]
    assert memory.statuses[:3] == ["RUNNING", "FINISHED", "FINISHED"]  # told again, as something came after it


@happens(
    "item", "a record of metrics fails by itself, again and again", "it is set aside with the reason; all others arrive"
)
@pytest.mark.parametrize("bad", [{3}, {12}, {21, 22}])
def test_a_record_of_metrics_that_fails_by_itself_is_set_aside_and_tried_again(
    run: Run, bad: set[int], eventually: Eventually
) -> None:
    memory = Faulty(*bad)
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: sorted(memory.rows) == sorted({*range(3, 23), *range(24, 34)} - bad))
    eventually(lambda: f"metrics: PermissionError: refused at {min(bad)}" in str(run.cursor_file.read().reason))
    assert not delivery.finished
    memory.faults.clear()
    thread.join(60)
    assert delivery.finished
    assert sorted(memory.rows) == [*range(3, 23), *range(24, 34)]
    assert sum(map(len, memory.batches)) == 30  # none of them twice


def test_the_last_record_of_metrics_is_tried_again_though_none_comes_after_it(run: Run, eventually: Eventually) -> None:
    memory = Faulty(33)
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: memory.statuses.count("FINISHED") > 8)
    memory.faults.clear()
    thread.join(60)
    assert (delivery.finished, sorted(memory.rows)[-1]) == (True, 33)


def test_what_waits_for_metrics_that_fail_keeps_nobody_busy(
    run: Run, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """An event that a tracker shows with the metrics before it."""
    monkeypatch.setattr(backoff, "FIRST_S", 3600)
    monkeypatch.setattr(backoff, "LONGEST_S", 3600)
    run.append("event", {"name": "checkpoint", "data": {"step": 1}, "alert": False})
    memory = ShowsEvents("deliver")
    thread = threading.Thread(target=run.deliver, args=(lambda: memory,), daemon=True)
    thread.start()
    eventually(lambda: memory.statuses[-1:] == ["FINISHED"])
    run.stopping.wait(0.2)  # a hundred times as long as a round takes
    run.stopping.set()
    thread.join(60)
    assert memory.statuses.count("FINISHED") == 1


def test_a_tracker_that_wants_everything_at_each_opening_makes_no_progress_by_that(
    run: Run, eventually: Eventually
) -> None:
    memory = Faulty("first.txt")
    memory.wants_all = True
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: memory.statuses.count("FINISHED") > 2)
    seen = delivery.progress
    eventually(lambda: memory.statuses.count("FINISHED") > 6)
    assert delivery.progress == seen
    run.stopping.set()
    thread.join(60)


def test_a_file_that_was_uploaded_to_a_run_that_is_gone_goes_to_the_new_one(run: Run, eventually: Eventually) -> None:
    old, new = SlowUploads(), Faulty()
    connections: list[Memory] = [old]
    thread = threading.Thread(target=run.deliver, args=(lambda: connections[-1],), daemon=True)
    thread.start()
    eventually(lambda: len(old.rows) == 30)
    new.wants_all = True
    connections.append(new)
    old.failures = [ConnectionError("the server is another one")]
    run.append("start", {"name": "n", "experiment": "e", "params": {}, "tags": {}})
    run.log(range(30, 31))
    run.finish()
    eventually(lambda: len(new.rows) == 31)
    old.may_end.set()
    thread.join(60)
    assert sorted({artifact.name for artifact in new.artifacts}) == ["first.txt", "second.txt"]


def test_a_tracker_that_takes_nothing_out_of_turn_has_the_bad_record_as_a_dead_letter(run: Run) -> None:
    memory = BufferingFaulty(12)
    cursor = run.deliver(lambda: memory)
    assert sorted(memory.rows) == sorted({*range(3, 23), *range(24, 34)} - {12})
    (letter,) = [json.loads(line) for line in run.cursor_file.dead_path.read_text().splitlines()]
    assert (letter["seq"], letter["reason"], cursor.dead_letters) == (12, "PermissionError: refused at 12", 1)


def test_a_tracker_that_takes_no_metrics_at_all_buries_none(run: Run, eventually: Eventually) -> None:
    memory = Faulty("deliver")
    thread = threading.Thread(target=run.deliver, args=(lambda: memory,), daemon=True)
    thread.start()
    eventually(lambda: memory.statuses.count("FINISHED") > 5)  # told again after each attempt
    memory.faults.clear()
    thread.join(60)
    assert arrived(memory) == dict.fromkeys(arrived(memory), True)
    assert run.cursor_file.read().dead_letters == 0


@happens(
    "item", "a file takes long to upload", "metrics and the end arrive meanwhile, and what was sent counts as progress"
)
def test_a_slow_upload_keeps_neither_metrics_nor_the_end_waiting(
    run: Run, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "END_WAITS_S", 0.01)
    memory = SlowUploads()
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: memory.statuses[-1:] == ["FINISHED"])
    assert (len(memory.rows), memory.artifacts) == (30, [])
    memory.may_end.set()
    thread.join(60)
    assert delivery.finished
    assert [artifact.name for artifact in memory.artifacts] == ["first.txt", "second.txt"]


def test_a_backend_that_is_closed_while_it_uploads_gets_the_file_once_more(run: Run, eventually: Eventually) -> None:
    memory = SlowUploads()
    thread = threading.Thread(target=run.deliver, args=(lambda: memory,), daemon=True)
    thread.start()
    eventually(lambda: len(memory.rows) == 30)
    run.stopping.set()
    thread.join(60)
    assert [left.kind for left in run.cursor_file.read().set_aside] == ["artifact", "artifact"]
    run.stopping.clear()
    memory.may_end.set()
    assert run.deliver(lambda: memory).is_all
    assert {artifact.name for artifact in memory.artifacts} == {"first.txt", "second.txt"}


@happens(
    "item",
    "a step or a time is no whole number of 64 bits",
    "the record is refused with that reason; all others arrive",
)
@pytest.mark.parametrize("place", [{"step": 2**63}, {"step": 5, "t_ms": 2**80}])
def test_a_record_that_no_tracker_can_store_is_a_dead_letter(run_dir: Path, place: dict[str, int]) -> None:
    run, memory = Run(run_dir), Memory()
    run.append("metrics", {"train_closs": 1.0}, **place)
    run.log(range(2))
    run.finish()
    cursor = run.deliver(lambda: memory)
    assert (sorted(memory.rows), cursor.dead_letters) == ([2, 3], 1)
    assert "no tracker has such a step or time" in run.cursor_file.dead_path.read_text()


def test_a_cursor_of_the_first_vlatrack_goes_on_where_it_stood(run: Run) -> None:
    whole = Memory()
    cursor = run.deliver(lambda: whole)
    fields = {"offset": cursor.offset, "seq": cursor.seq, "start_offset": 0, "dead_letters": 0, "url": "memory"}
    (run.files.delivery / "memory-0.json").write_text(json.dumps({**fields, "destination": "", "error": None}))
    run.deliver(lambda: pytest.fail("it has everything"))
    run.start()
    run.log(range(30, 32))
    run.finish()
    more = Memory()
    assert run.deliver(lambda: more).is_all
    assert sorted(more.rows) == [36, 37]

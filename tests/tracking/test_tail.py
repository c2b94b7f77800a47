"""Delivery to one backend, with a backend that keeps everything in memory and fails when told to."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_tracker import Memory, Run

from vlatrack.tracking.backends.base import Artifact, Position, RunFinish, RunStart
from vlatrack.tracking.delivery import backoff, tail
from vlatrack.tracking.delivery.cursor import Cursor
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import read_records


class NothingAfterFinish(Memory):
    """A tracker that takes nothing after its finish, as W&B; the answer of one call is lost."""

    def __init__(self, lost_answer: int) -> None:
        super().__init__()
        self.left = lost_answer

    def open(self, start: RunStart, acknowledged: int) -> Position:
        position = super().open(start, acknowledged)
        self.statuses.append("RUNNING")
        self._answer()
        return position

    def put_artifact(self, artifact: Artifact) -> None:
        assert self.statuses[-1] == "RUNNING", "it has finished"
        if artifact not in self.artifacts:
            super().put_artifact(artifact)
        self._answer()

    def finish(self, finish: RunFinish) -> None:
        assert self.statuses[-1] == "RUNNING", "it has finished"
        super().finish(finish)
        self._answer()

    def _answer(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("cut")


@pytest.fixture
def run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    return Run(run_dir)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_everything_arrives_in_order_and_the_cursor_stands_behind_the_finish(run: Run, memory: Memory) -> None:
    run.log(range(1200))
    run.append("event", {"name": "nan", "data": {"step": 3}, "alert": True})
    run.append("event", {"name": "quiet", "data": {}, "alert": False})
    run.finish()
    cursor = run.deliver(lambda: memory)
    assert [batch[0] for batch in memory.batches] == [1, 501, 1001]
    assert list(memory.rows) == list(range(1, 1201))
    assert (memory.statuses, memory.alerts) == (["RUNNING", "FINISHED"], ["nan (step: 3)"])
    assert (cursor.seq, cursor.offset, cursor.url) == (1203, run.files.journal.stat().st_size, "memory")


def test_records_may_wait_for_others_but_not_beyond_the_end_of_the_run(
    run: Run, memory: Memory, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr(tail, "BATCH_INTERVAL_S", 3600)
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    eventually(lambda: run.cursor_file.read().seq == 0)
    run.log(range(5))
    run.finish()
    delivery.drain()
    thread.join(60)
    assert delivery.finished
    assert list(memory.rows) == list(range(1, 6))


def test_delivery_that_is_complete_does_not_open_the_backend_again(run: Run, memory: Memory) -> None:
    run.finish()
    run.deliver(lambda: memory)
    run.deliver(lambda: pytest.fail("opened again"))


def test_a_lost_answer_is_repeated_from_the_cursor(run: Run, memory: Memory) -> None:
    run.log(range(3))
    run.finish()
    memory.failures = [ConnectionError("cut"), TimeoutError("slow")]
    cursor = run.deliver(lambda: memory)
    assert memory.batches == [[1, 2, 3]] * 3
    assert (cursor.seq, cursor.error) == (4, None)


def test_a_backend_that_cannot_be_reached_is_tried_until_it_can(run: Run, memory: Memory) -> None:
    run.log(range(3))
    run.finish()
    attempts: list[str | None] = []

    def connect() -> Memory:
        attempts.append(run.cursor_file.read().error)
        if len(attempts) < 4:
            raise ConnectionError("no route\nto host")
        return memory

    assert run.deliver(connect).seq == 4
    assert attempts == [None, *["ConnectionError: no route to host"] * 3]


def test_records_that_are_refused_for_good_are_dead_letters_with_the_reason_and_the_rest_arrives(
    run: Run, memory: Memory
) -> None:
    run.log(range(100))
    run.finish()
    memory.poison = {7, 50}
    cursor = run.deliver(lambda: memory)
    assert set(memory.rows) == set(range(1, 101)) - {7, 50}
    letters = [json.loads(line) for line in run.cursor_file.dead_path.read_text().splitlines()]
    assert [(letter["seq"], letter["reason"]) for letter in letters] == [(7, "poison"), (50, "poison")]
    assert cursor.dead_letters == 2


def test_an_artifact_that_is_gone_is_a_dead_letter(run: Run, memory: Memory) -> None:
    (run.dir / "spec.yaml").write_text("a: 1")
    for name in ("spec.yaml", "gone.bin"):
        run.append("artifact", {"name": name, "place": name, "sha256": "", "files": {}})
    run.finish()
    cursor = run.deliver(lambda: memory)
    assert [artifact.name for artifact in memory.artifacts] == ["spec.yaml"]
    assert cursor.dead_letters == 1
    assert "gone.bin" in run.cursor_file.dead_path.read_text()


@pytest.mark.parametrize("text", ["", "{", '{"offset": 17}', '{"offset": 100000, "seq": 5}', '{"other": 1}'])
def test_a_damaged_or_stale_cursor_means_from_the_beginning(run: Run, memory: Memory, text: str) -> None:
    run.log(range(5))
    run.finish()
    run.deliver(lambda: memory)
    (run.files.delivery / "memory-0.json").write_text(text)
    cursor = run.deliver(lambda: memory)
    assert memory.batches == [[1, 2, 3, 4, 5]] * 2
    assert cursor.seq == 6


def test_a_backend_that_lost_everything_is_given_everything(run: Run, memory: Memory) -> None:
    run.log(range(5))
    run.finish()
    run.deliver(lambda: memory)
    memory.rows, memory.wants_all = {}, True
    run.start()
    run.log(range(5, 7))
    run.finish()
    run.deliver(lambda: memory)
    assert sorted(memory.rows) == [1, 2, 3, 4, 5, 8, 9]


def test_a_resumed_run_is_described_again_with_its_new_params_and_its_last_end_counts(run: Run, memory: Memory) -> None:
    run.finish()
    run.start(epochs=2)
    run.log(range(2))
    run.finish()
    cursor = run.deliver(lambda: memory)
    assert [(start.params, start.seq) for start in memory.starts] == [({}, 0), ({"epochs": 2}, 2)]
    assert memory.statuses == ["RUNNING", "RUNNING", "FINISHED"]
    assert cursor.seq == 5


def log_file(run: Run, name: str) -> None:
    (run.dir / name).write_text(name)
    run.append("artifact", {"name": name, "place": name, "sha256": "", "files": {}})


@pytest.mark.parametrize("lost_answer", range(5))
def test_files_that_are_logged_after_the_end_arrive_before_the_backend_is_told_of_it(
    run: Run, lost_answer: int
) -> None:
    run.log(range(3))
    log_file(run, "before.txt")
    run.finish()
    log_file(run, "after.txt")
    run.append("event", {"name": "report_failed", "data": {}, "alert": True})
    memory = NothingAfterFinish(lost_answer)
    cursor = run.deliver(lambda: memory)
    assert [artifact.name for artifact in memory.artifacts] == ["before.txt", "after.txt"]
    assert memory.statuses[-1] == "FINISHED"
    assert sorted(memory.rows) == [1, 2, 3]
    assert (cursor.seq, cursor.offset, cursor.dead_letters) == (7, run.files.journal.stat().st_size, 0)
    run.deliver(lambda: pytest.fail("opened again"))


def test_the_end_is_held_back_while_the_journal_is_being_written(
    run: Run, memory: Memory, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "POLL_S", 0.001)
    journal = Journal.open(run.files.journal, run="u1", writer="trainer")
    journal.append("finish", {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
    (run.dir / "gone.txt").touch()
    delivery = Tail(run.dir, "memory-0", lambda: memory, run.stopping)
    delivery.drain()
    thread = threading.Thread(target=delivery.run, daemon=True)
    thread.start()
    for number in range(3):
        (run.dir / f"{number}.txt").write_text("figure")
        data = {"name": f"{number}.txt", "place": f"{number}.txt", "sha256": "", "files": {}}
        journal.append("artifact", data)
        eventually(lambda number=number: len(memory.artifacts) == number + 1)
        assert (memory.statuses, delivery.finished) == (["RUNNING"], False)
    journal.close()
    thread.join(60)
    assert delivery.finished
    assert memory.statuses == ["RUNNING", "FINISHED"]
    assert (run.cursor_file.read().seq, run.cursor_file.read().is_all) == (4, True)


def test_a_run_that_got_a_file_after_its_end_was_delivered_ends_once_more(run: Run, memory: Memory) -> None:
    run.finish()
    run.deliver(lambda: memory)
    log_file(run, "late.txt")
    assert run.deliver(lambda: memory).seq == 2
    assert memory.statuses == ["RUNNING", "FINISHED", "FINISHED"]
    assert [artifact.name for artifact in memory.artifacts] == ["late.txt"]


def test_files_between_an_end_and_a_resume_arrive(run: Run, memory: Memory) -> None:
    run.finish()
    log_file(run, "figure.txt")
    run.start(epochs=2)
    run.log(range(2))
    run.finish()
    cursor = run.deliver(lambda: memory)
    assert memory.statuses == ["RUNNING", "RUNNING", "FINISHED"]
    assert [artifact.name for artifact in memory.artifacts] == ["figure.txt"]
    assert (sorted(memory.rows), cursor.seq) == ([4, 5], 6)


def test_delivery_that_is_told_to_stop_goes_on_later(run: Run, memory: Memory) -> None:
    run.log(range(3))
    thread = threading.Thread(target=run.deliver, args=(lambda: memory,))
    thread.start()
    while run.cursor_file.read().seq < 3:
        assert thread.is_alive()
    run.stopping.set()
    thread.join()
    run.stopping.clear()
    run.finish()
    run.deliver(lambda: memory)
    assert memory.batches == [[1, 2, 3]]
    assert memory.statuses == ["RUNNING", "FINISHED"]


def test_a_journal_torn_at_any_byte_is_delivered_without_loss_or_repetition(run: Run) -> None:
    run.log(range(3))
    whole = run.files.journal.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    run.stopping.set()
    for torn in range(begin, len(whole) + 1):
        run.cursor_file.write(Cursor())
        run.files.journal.write_bytes(whole[:torn])
        whole_records = 4 if torn == len(whole) else 3
        assert len(list(read_records(run.files.journal))) == whole_records  # while nobody has repaired it
        run.log(range(10, 12))
        run.finish()
        memory = Memory()
        run.stopping.clear()
        run.deliver(lambda memory=memory: memory)
        assert sorted(memory.rows) == list(range(1, whole_records + 2))
        assert sum(map(len, memory.batches)) == len(memory.rows)


def test_a_cursor_with_any_byte_changed_neither_ends_the_delivery_nor_skips_a_record(run: Run) -> None:
    run.log(range(5))
    half_way = Memory()
    run.stopping.clear()
    thread = threading.Thread(target=run.deliver, args=(lambda: half_way,))
    thread.start()
    while run.cursor_file.read().seq < 5:
        assert thread.is_alive()
    run.stopping.set()
    thread.join()
    run.log(range(5, 12))
    run.finish()
    path = run.files.delivery / "memory-0.json"
    sound = path.read_bytes()
    run.stopping.clear()
    for at in range(len(sound)):
        for other in (b"", b"-", b"9", b'"', b"\xff"):
            path.write_bytes(sound[:at] + other + sound[at + 1 :])
            memory = Memory()
            run.deliver(lambda memory=memory: memory)
            assert set(range(6, 13)) <= set(memory.rows), path.read_bytes()
            assert memory.statuses[-1] == "FINISHED"


def test_a_full_disk_under_the_cursor_does_not_end_the_delivery(run: Run, memory: Memory) -> None:
    run.log(range(3))
    run.finish()
    in_the_way = run.files.delivery / f".memory-0.json.{os.getpid()}.new"
    in_the_way.mkdir()
    attempts: list[int] = []

    def connect() -> Memory:
        attempts.append(1)
        if len(attempts) == 3:
            in_the_way.rmdir()
        return memory

    assert run.deliver(connect).seq == 4
    assert sorted(memory.rows) == [1, 2, 3]

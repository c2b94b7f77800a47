import itertools
import json
import logging
import math
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from launching import running

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.journal import Journal, is_being_written
from vlatrack.tracking.journal.records import JournalReader, finish_record, last_record, read_records, records_backwards
from vlatrack.tracking.lock import FileLock


def _open(path: Path) -> Journal:
    return Journal.open(path, run="r1", writer="trainer")


def _write(path: Path, count: int) -> None:
    journal = _open(path)
    for step in range(count):
        journal.append("metrics", {"train_closs": step / 2}, step=step)
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_records_are_read_back_as_they_were_written(path: Path) -> None:
    journal = _open(path)
    before = time.time_ns() // 1_000_000
    assert journal.append("event", {"name": "ünïcode 字", "data": {"a": None, "b": [1, True]}}) == 0
    assert journal.append("metrics", {"train_closs": 3.25, "epoch": 0}, step=7) == 1
    journal.close()
    event, metrics = read_records(path)
    assert (event.v, event.run, event.writer, event.seq, event.kind, event.step) == (
        1,
        "r1",
        "trainer",
        0,
        "event",
        None,
    )
    assert event.data == {"name": "ünïcode 字", "data": {"a": None, "b": [1, True]}}
    assert (metrics.seq, metrics.step, metrics.data) == (1, 7, {"train_closs": 3.25, "epoch": 0})
    assert before <= event.t_ms <= metrics.t_ms <= time.time_ns() // 1_000_000


def test_nan_and_infinities_survive_in_valid_json(path: Path) -> None:
    journal = _open(path)
    journal.append("metrics", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan")}, step=0)
    journal.close()
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["data"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "NaN"}
    data = next(read_records(path)).data
    assert math.isnan(data["a"])
    assert math.isnan(data["d"])
    assert (data["b"], data["c"]) == (math.inf, -math.inf)


def test_numbers_of_numpy_and_torch_are_numbers(path: Path) -> None:
    journal = _open(path)
    scalars = {
        "f": np.float32(0.5),
        "i": np.int64(3),
        "t": torch.tensor(0.25),
        "n": torch.tensor(2),
    }
    journal.append("metrics", scalars, step=np.int64(4))
    journal.close()
    record = next(read_records(path))
    assert (record.step, record.data) == (4, {"f": 0.5, "i": 3, "t": 0.25, "n": 2.0})


def test_sequence_goes_on_where_it_was_when_the_journal_is_opened_again(path: Path) -> None:
    _write(path, 3)
    _write(path, 2)
    assert [record.seq for record in read_records(path)] == [0, 1, 2, 3, 4]


def test_torn_last_line_is_cut_off_when_the_journal_is_opened_again(path: Path) -> None:
    _write(path, 3)
    whole = path.read_bytes()
    kept = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for torn in range(len(kept), len(whole)):
        path.write_bytes(whole[:torn])
        journal = _open(path)
        assert path.read_bytes() == kept
        assert journal.append("event", {}) == 2
        journal.close()


def test_a_damaged_last_line_is_an_error_with_its_place(path: Path) -> None:
    _write(path, 2)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(TrackerError, match=rf"journal.jsonl: byte {size} begins no journal record"):
        _open(path)


def test_an_unfinished_line_waits_until_it_is_complete(path: Path) -> None:
    _write(path, 2)
    whole = path.read_bytes()
    middle = len(whole) - 10
    path.write_bytes(whole[:middle])
    reader = JournalReader(path)
    assert [record.seq for record in reader.read(10)] == [0]
    assert reader.read(10) == []
    with path.open("ab") as file:
        file.write(whole[middle:])
    assert [record.seq for record in reader.read(10)] == [1]
    assert reader.offset == len(whole)


def test_the_end_is_found_without_reading_the_beginning(path: Path) -> None:
    assert not path.exists()
    path.touch()
    assert last_record(path) is None
    _write(path, 5000)
    with path.open("r+b") as file:
        file.write(b"#")  # whoever reads the first line fails
    last = last_record(path)
    assert last is not None
    assert last.seq == 4999
    newest = [record.seq for record in itertools.islice(records_backwards(path), 3000)]
    assert newest == list(range(4999, 1999, -1))


def test_records_longer_than_a_block_are_read_backwards_as_forwards(path: Path) -> None:
    journal = _open(path)
    for size in (0, 1, 1 << 16, 3, 200_000, 1 << 17, 5):
        journal.append("event", {"text": "x" * size})
    journal.close()
    assert list(records_backwards(path)) == list(reversed(list(read_records(path))))


def test_the_end_of_a_run_is_found_behind_any_number_of_files_until_it_starts_again(path: Path) -> None:
    journal = _open(path)
    journal.append("start", {})
    assert finish_record(path) is None
    journal.append("finish", {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
    for _ in range(5000):
        journal.append("artifact", {"name": "figure"})
    end = finish_record(path)
    assert end is not None
    assert end.seq == 1
    journal.append("start", {})
    assert finish_record(path) is None
    journal.close()


def test_metrics_after_the_end_of_a_run_are_refused_with_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = _open(path)
    journal.append("start", {})
    journal.append("finish", {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
    assert [journal.append("metrics", {"a": 1.0}, step=step) for step in range(3)] == [None] * 3
    assert journal.append("event", {"name": "report_failed"}) == 2
    journal.close()
    journal = _open(path)  # also for a writer that opens the journal of a run that has ended
    assert journal.append("metrics", {"a": 1.0}, step=4) is None
    journal.append("start", {})
    assert journal.append("metrics", {"a": 1.0}, step=5) == 4
    journal.close()
    assert journal.lost == 0
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2
    assert all("after the end of the run are not logged" in text for text in warned)


def test_only_one_process_writes_and_a_killed_one_lets_go(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vlatrack.tracking.journal.journal import Journal\n"
        "j = Journal.open(Path(sys.argv[1]), run='r1', writer='other'); j.append('event', {})\n"
        "print('open', flush=True); time.sleep(60)"
    )
    with running([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert is_being_written(path)
        with pytest.raises(TrackerError, match=r"another process .* is writing this run"):
            _open(path)
    assert not is_being_written(path)
    _write(path, 1)
    assert [record.writer for record in read_records(path)] == ["other", "trainer"]


def test_a_forked_data_worker_neither_holds_nor_breaks_the_journal(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vlatrack.tracking.journal.journal import Journal\n"
        "j = Journal.open(Path(sys.argv[1]), run='r1', writer='trainer'); j.append('event', {})\n"
        "if os.fork() == 0:\n"
        "    j.append('event', {'from': 'child'}); print(j.dropped_in_forks, flush=True)\n"
        "    sys.stdin.read(); os._exit(0)\n"
        "os._exit(0)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with running([sys.executable, "-c", code, path], **pipes) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdin is not None
        assert trainer.stdout.readline() == "1\n"
        trainer.wait()
        assert not is_being_written(path)  # the child is still alive
        trainer.stdin.close()
    assert [record.data for record in read_records(path)] == [{}]


@pytest.mark.parametrize(("owner", "name"), [(threading.Thread, "join"), (os, "fdatasync"), (FileLock, "release")])
def test_an_interrupted_close_is_finished_by_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    journal = _open(path)
    journal.append("event", {})
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            journal.close()
    assert is_being_written(path)
    for _ in range(2):
        journal.close()
    assert not is_being_written(path)
    assert list(path.parent.iterdir()) == [path]
    _write(path, 1)


def test_a_full_disk_costs_records_but_neither_the_run_nor_the_sequence(path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from vlatrack.tracking.journal.journal import Journal\n"
        "j = Journal.open(Path(sys.argv[1]), run='r1', writer='trainer')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "for step in range(20): j.append('metrics', {'a': step}, step=step)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "j.append('metrics', {'a': 20}, step=20); j.close(); print(j.lost)"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    records = list(read_records(path))
    assert int(ended.stdout) == 21 - len(records) > 0
    assert ended.stderr.count("training goes on") == 1
    assert [record.seq for record in records] == list(range(len(records)))
    assert records[-1].step == 20


def test_the_journal_is_for_its_user_alone(path: Path) -> None:
    _write(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_logging_does_not_wait_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, synced = _open(path), list[threading.Thread]()
    with monkeypatch.context() as logging:
        for name in ("fsync", "fdatasync"):
            logging.setattr(os, name, lambda *_: synced.append(threading.current_thread()))
        for step in range(2000):
            journal.append("metrics", {f"train_l1_loss_action_{x}": x / 7 for x in range(20)}, step=step)
    journal.close()
    assert threading.current_thread() not in synced

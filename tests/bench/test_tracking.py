from pathlib import Path

import pytest

from vlatrack.bench.tracking import measure_health, measure_journal, measure_logging
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run_files import RunFiles

pytestmark = pytest.mark.slow


def test_logging_is_timed_on_a_run_of_its_own(run_dir: Path) -> None:
    speed = measure_logging(run_dir, 1000)
    assert len(list(read_records(RunFiles(run_dir).journal))) == 1002
    assert 0 < speed.p50_us <= speed.p99_us
    assert speed.calls_per_s > 0


def test_the_health_of_records_is_timed() -> None:
    assert measure_health(500) > 0


def test_a_long_journal_is_a_journal_and_its_use_is_timed(run_dir: Path) -> None:
    speed = measure_journal(run_dir, 50_000)
    records = list(read_records(RunFiles(run_dir).journal))
    assert [record.seq for record in records] == list(range(len(records)))
    assert len(records) > 50_000
    assert min(speed.open_s, speed.tail_s, speed.status_s) > 0

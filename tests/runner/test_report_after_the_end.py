"""What happens once a run has its end: figures and files, which cannot change it any more."""

from pathlib import Path

import pytest

from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.run import _report_results
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run import TrackedRun, run_status


def test_a_figure_that_cannot_be_drawn_leaves_the_run_finished(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracked = TrackedRun.start(run_dir, uid="u", name="n", experiment="e", backends=[], params={}, tags={})
    (run_dir / "log_train.txt").write_text("no JSON\n")
    tracked.end("FINISHED")
    _report_results(RunDirectory(run_dir), tracked)
    tracked.close()
    assert run_status(run_dir).status == "FINISHED"
    (failed,) = [record.data for record in read_records(run_dir / "journal.jsonl") if record.kind == "event"]
    assert failed["name"] == "report_failed"
    assert "figures and files are not complete" in caplog.text

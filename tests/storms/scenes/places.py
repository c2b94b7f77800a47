"""A run is not where it was, or twice there."""

import shutil
import subprocess

from mlflow_server import wait_until
from scene import Moments
from storm_rig import StormRun

from vlatrack.tracking.journal.records import finish_record
from vlatrack.tracking.run_files import RunFiles


def moved(run: StormRun, at: Moments) -> None:
    """The folder of the living run gets another name, or another place."""
    run.expected_status = "FINISHED"
    wait_until(lambda: run.has_begun() or run.has_ended(), "the run begins")
    at.pause(9)
    old = run.files.run_dir
    new = at.rng.choice((old.with_name(f"{old.name}-moved"), run.files.runs / "other" / old.name))
    new.parent.mkdir(exist_ok=True)
    shutil.move(old, new)
    run.files = RunFiles(new)
    run.await_trainer()
    assert not old.exists(), "the old folder is back"


def copied(run: StormRun, at: Moments) -> None:
    """The folder of the living run is copied, and what a person might do to the copy must not end the run."""
    run.expected_status = "FINISHED"
    wait_until(lambda: run.has_begun() or run.has_ended(), "the run begins")
    at.pause(5)
    copies = run.rig.folder / f"{run.uid}-copies"
    copy = RunFiles(copies / "storm" / "copy")
    copy.run_dir.parent.mkdir(parents=True)
    # Files come and go in a living run, of which `cp` complains.
    subprocess.run(["cp", "-r", run.files.run_dir, copy.run_dir], capture_output=True, check=False)
    ended_before = finish_record(copy.journal) is not None
    for _ in range(3):
        at.pause(3)
        sync_or_reap = at.rng.choice((("sync", str(copy.run_dir)), ("reap", "--runs", str(copies))))
        run.vlatrack(*sync_or_reap, "--trust-destination", "--patience", "10").wait()
        statuses = [status for tracker in run.trackers for status in tracker(run.files, run.uid).statuses]
        run.wrong_ends += sum(status.upper() == "KILLED" for status in statuses)
    run.wrong_ends += (finish_record(copy.journal) is not None) != ended_before

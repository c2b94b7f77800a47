"""A tracker forgets what it has acknowledged."""

import contextlib
import sqlite3
from pathlib import Path

from scene import Moments
from storm_rig import StormRun

REPAIR = ("--audit", "--repair")


def restored_from_a_backup(run: StormRun, at: Moments) -> None:
    """MLflow's database is that of an earlier moment again; a plain sync finds out, as one that is told to does."""
    run.expected_status = "FINISHED"
    at.pause(12)
    store, backup = run.rig.mlflow.store, run.rig.folder / f"{run.uid}.db"
    with contextlib.closing(sqlite3.connect(store)) as source, contextlib.closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    run.await_complete()
    run.rig.mlflow.kill()
    for path in (store, Path(f"{store}-wal"), Path(f"{store}-shm")):
        path.unlink(missing_ok=True)
    backup.rename(store)
    run.rig.mlflow.start()
    run.sync(*at.rng.choice(((), REPAIR))).wait()


def rows_gone(run: StormRun, at: Moments) -> None:
    """W&B's server loses some rows, anywhere in the run."""
    run.expected_status = "FINISHED"
    run.await_complete()
    history = run.rig.wandb.runs[run.uid].history
    for index in sorted(at.rng.sample(range(len(history)), at.rng.randint(1, len(history) // 2)), reverse=True):
        del history[index]
    run.sync(*REPAIR).wait()

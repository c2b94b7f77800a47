"""An imported training is the same run at MLflow and at W&B, also if the import was cut off."""

import json
import os
import shutil
from pathlib import Path

import pytest
from test_delivery import MLFLOW, WANDB, journal_rows, mlflow_rows, mlflow_run, wandb_rows
from wandb_double import WandbDouble

from vlatrack.importers.run import Imported, import_run
from vlatrack.tracking.backends.base import BackendConfig

pytestmark = pytest.mark.slow

MTIME = 1_700_000_000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    for name, prefix in (("log_train.txt", "train_"), ("log_eval_ind.txt", "val_")):
        lines = [{f"{prefix}closs": 3 / (e + 1), f"{prefix}l1_loss_action_5": e / 7, "epoch": e} for e in range(20)]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(folder / name, (MTIME, MTIME))
    return folder


def import_into(runs: Path, empty_store: Path, old: Path, *backends: BackendConfig) -> Imported:
    runs.mkdir(exist_ok=True)
    if not (runs / "mlflow.db").exists():
        shutil.copy(empty_store, runs / "mlflow.db")
    return import_run([old], name="exp", runs=runs, backends=backends)


def test_an_import_is_the_same_run_everywhere_and_goes_on_where_it_was_cut_off(
    old: Path, tmp_path: Path, empty_store: Path, wandb_server: WandbDouble
) -> None:
    whole = import_into(tmp_path / "runs", empty_store, old, MLFLOW, WANDB)
    assert whole.delivery is not None
    assert whole.delivery.complete, whole.delivery
    uid, rows = f"exp-{whole.directory.name}", journal_rows(whole.directory)
    assert {time for _, time, _, _ in rows} == {MTIME * 1000}
    assert len(wandb_server.runs[uid].rows) == 40
    # Both splits note the epoch, at the same step and time: MLflow keeps that once.
    assert set(mlflow_rows(whole.directory)) == set(wandb_rows(wandb_server, uid)) == set(rows)
    assert wandb_rows(wandb_server, uid) == rows

    lines = (whole.directory / "journal.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "elsewhere" / "exp" / whole.directory.name
    cut.mkdir(parents=True)
    (cut / "journal.jsonl").write_bytes(b"".join(lines[:17]))
    for delivered in (True, None):  # the second time there is nothing to do
        done = import_into(tmp_path / "elsewhere", empty_store, old, MLFLOW)
        assert done.directory == cut
        assert (done.delivery.complete if done.delivery is not None else None) is delivered
    assert journal_rows(cut) == rows
    assert mlflow_rows(cut) == mlflow_rows(whole.directory)
    assert mlflow_run(cut).info.status == "FINISHED"
    assert list(wandb_server.runs) == [uid]

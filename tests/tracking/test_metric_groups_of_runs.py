"""A run has its metrics in groups at the trackers, unless it began when they had plain names: to its end, then."""

import json
import shutil
from pathlib import Path

import pytest
from happens import happens
from mlflow.tracking import MlflowClient

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.trust import OWN_RUN

NAMES = {"train_closs": 1.0, "train_acc_action": 0.5, "epoch": 1.0, "reward": 3.0}
GROUPED = {"train_closs", "action/train_acc_action", "progress/epoch", "reward"}


def part(run_dir: Path, step: int, *, resume: bool = False, naming: str = "documented") -> None:
    config = BackendConfig("mlflow", naming)
    run = TrackedRun.start(
        run_dir, uid="u1", name="n", experiment="exp", backends=[config], params={}, tags={}, resume=resume
    )
    run.log(NAMES, step=step)
    assert run.finish("FINISHED").complete


def keys(run_dir: Path) -> set[str]:
    (run,) = MlflowClient(f"sqlite:///{run_dir.parents[1] / 'mlflow.db'}").search_runs(["1"])
    return set(run.data.metrics)


def begun_by_an_earlier_release(run_dir: Path) -> None:
    first, *rest = (run_dir / "journal.jsonl").read_text().splitlines()
    start = json.loads(first)
    del start["data"]["groups_metrics"]
    (run_dir / "journal.jsonl").write_text("\n".join([json.dumps(start, separators=(",", ":")), *rest]) + "\n")
    for file in (run_dir / "delivery").glob("mlflow-0*"):
        file.unlink()


def test_a_new_run_has_its_metrics_in_groups_and_goes_on_so(stored_run_dir: Path) -> None:
    part(stored_run_dir, 1)
    part(stored_run_dir, 2, resume=True)
    assert keys(stored_run_dir) == GROUPED
    (audit,) = audit_run(stored_run_dir, ["mlflow-0"], trust=OWN_RUN)
    assert audit.differences == ()


@happens(
    "process",
    "a run that began before metrics had groups at the trackers is resumed, synced or audited",
    "it keeps the plain names to its end: no tracker has a metric under two names",
)
def test_a_run_that_began_with_plain_names_keeps_them(stored_run_dir: Path, empty_store: Path) -> None:
    part(stored_run_dir, 1)
    begun_by_an_earlier_release(stored_run_dir)
    shutil.copy(empty_store, stored_run_dir.parents[1] / "mlflow.db")
    part(stored_run_dir, 2, resume=True)
    assert keys(stored_run_dir) == set(NAMES)
    (audit,) = audit_run(stored_run_dir, ["mlflow-0"], trust=OWN_RUN)
    assert audit.differences == ()


def test_a_run_cannot_change_the_names_of_its_metrics_when_it_is_resumed(stored_run_dir: Path) -> None:
    part(stored_run_dir, 1)
    journal = (stored_run_dir / "journal.jsonl").read_bytes()
    with pytest.raises(TrackerError, match=r"began with naming: documented, and with sections each .* twice"):
        part(stored_run_dir, 2, resume=True, naming="sections")
    assert (stored_run_dir / "journal.jsonl").read_bytes() == journal

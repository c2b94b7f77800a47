"""What a run's page at MLflow says at first sight: verdict and table in its description, models that are there."""

import math
import shutil
from pathlib import Path

from mlflow.tracking import MlflowClient
from test_evaluations import deliver

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.journal.records import Kind

MLFLOW = BackendConfig("mlflow")
FINDING = {
    "detector": "spike",
    "severity": "warning",
    "metric": "train_closs",
    "step": 2,
    "value": 9.0,
    "message": "train_closs\njumped to 9.0",
    "remedy": "lower optim.lr",
}


def a_run(folder: Path) -> ExampleRun:
    """Three steps with a checkpoint each, of which the first was rotated away, and a finding."""
    run = ExampleRun(folder)
    for step, closs in enumerate((3.0, 9.0, math.nan), 1):
        metrics = {"train_closs": closs, "train_l1_loss_action_9": 0.5 / step, "train_mfu": 0.1}
        run.append(Kind.METRICS, metrics, step=step)
        (run.dir / "checkpoints" / f"step-{step}").mkdir(parents=True)
        run.append(Kind.EVENT, {"name": "checkpoint", "data": {"step": step, "name": f"step-{step}"}, "alert": False})
    shutil.rmtree(run.dir / "checkpoints" / "step-1")
    return run


def test_the_description_has_the_verdict_and_the_documented_metrics_unless_a_person_wrote_it(
    stored_run_dir: Path,
) -> None:
    run = a_run(stored_run_dir.parents[2])
    run.append(Kind.EVENT, {"name": "health", "data": FINDING, "alert": True})
    run.finish("FINISHED")
    deliver(run.dir, MLFLOW)
    client = MlflowClient(f"sqlite:///{stored_run_dir.parents[1] / 'mlflow.db'}")
    (stored,) = client.search_runs(["1"])
    verdict, findings, table, place = stored.data.tags["mlflow.note.content"].split("\n\n")
    assert verdict == "**FINISHED, warning: spike**"
    assert findings == "- warning: train_closs jumped to 9.0; try: lower optim.lr"
    assert table.splitlines()[2:] == [
        "| train_closs | 3 | nan | 3 | 1 |",
        "| train_l1_loss_action_9 | 0.5 | 0.1667 | 0.1667 | 3 |",
    ]
    assert place.startswith(f"Run directory: `{run.dir}` on ")
    client.set_tag(stored.info.run_id, "mlflow.note.content", "looks good")
    client.set_tag(stored.info.run_id, "vlatrack.commit", "abc")  # as an earlier release did
    deliver(run.dir, MLFLOW)
    assert "vlatrack.commit" not in client.get_run(stored.info.run_id).data.tags
    assert client.get_run(stored.info.run_id).data.tags["mlflow.note.content"] == "looks good"


def test_only_checkpoints_that_are_there_or_have_a_copy_are_models(stored_run_dir: Path) -> None:
    run = a_run(stored_run_dir.parents[2])
    client = MlflowClient(f"sqlite:///{stored_run_dir.parents[1] / 'mlflow.db'}")

    def models() -> list[str]:
        return sorted(model.name for model in client.search_logged_models(["1"]))

    run.finish("FINISHED")
    deliver(run.dir, MLFLOW)
    assert models() == ["step-2", "step-3"]
    shutil.rmtree(run.dir / "checkpoints" / "step-2")
    deliver(run.dir, MLFLOW)
    assert models() == ["step-3"], "deleted since it was delivered"
    (stored,) = client.search_runs(["1"])
    client.set_tag(stored.info.run_id, "vlatrack.artifact.checkpoints/step-3", "ab" * 32)
    (run.dir / "checkpoints" / "step-4").mkdir()
    shutil.rmtree(run.dir / "checkpoints" / "step-3")
    deliver(run.dir, MLFLOW)
    assert models() == ["step-3"], "its copy can be loaded"

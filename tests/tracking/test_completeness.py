"""What MLflow and W&B hold besides metrics: data, checkpoints, infinities, best values; and what a resume leaves."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from test_delivery import MLFLOW, WANDB, client, mlflow_rows, mlflow_run, wandb_rows
from wandb_double import WandbDouble

from vlatrack.metrics.schema import SYSTEM
from vlatrack.tracking.artifacts import CopyRule, read_artifact
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.journal.history import Rewinds, metric_history
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run import DatasetInput, TrackedRun

pytestmark = pytest.mark.slow

DATA = [DatasetInput("demo", '{"path": "data/demo"}', "ab" * 32, split) for split in ("train", "val_ind")]


def start(
    run_dir: Path, *, resume_step: int | None = None, backends: Sequence[BackendConfig] = (MLFLOW, WANDB)
) -> TrackedRun:
    return TrackedRun.start(
        run_dir,
        uid="u1",
        name="a run",
        experiment="exp",
        backends=backends,
        params={},
        tags={},
        datasets=DATA,
        resume=resume_step is not None,
        resume_step=resume_step,
    )


def log_part(run: TrackedRun, run_dir: Path, steps: range, checkpoint: int) -> None:
    for step in steps:
        run.log({"train_closs": 10.0 - step, "train_acc_action": step / 10, "train_lr": 1.0}, step=step)
        if step == checkpoint:
            run.log({"val_ind_closs": float(step)}, step=step)
            (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
            run.event("checkpoint", {"step": step, "epoch": 1, "name": f"step-{step:08d}"})


def models(store: MlflowClient, run_dir: Path) -> list[tuple[str, int, dict[str, float]]]:
    """(name, step, metrics) of the run's LoggedModels, in the order of their linking."""
    outputs = mlflow_run(run_dir).outputs.model_outputs
    found = [(store.get_logged_model(output.model_id), output.step) for output in outputs]
    return sorted((model.name, step, {m.key: m.value for m in model.metrics}) for model, step in found)


def test_a_run_that_goes_back_twice_stays_one_run_with_its_rewinds_marked(
    stored_run_dir: Path, wandb_server: WandbDouble
) -> None:
    for resume_step, steps in ((None, range(1, 9)), (3, range(4, 7)), (2, range(3, 9))):
        run = start(stored_run_dir, resume_step=resume_step)
        log_part(run, stored_run_dir, steps, 4)
        status = "FINISHED" if resume_step == 2 else "KILLED"
        report = run.finish(status)
        assert report.complete, report
    marked = {"vlatrack.rewound.1": "4-8", "vlatrack.rewound.2": "3-6"}
    stored, at_wandb = mlflow_run(stored_run_dir), wandb_server.runs["u1"]
    assert {k: v for k, v in stored.data.tags.items() if k.startswith("vlatrack.rewound")} == marked
    assert json.loads(at_wandb.config)["tags"]["value"] == marked
    assert sorted(at_wandb.tags) == [f"{key}:{value}" for key, value in marked.items()]
    records = list(read_records(stored_run_dir / "journal.jsonl"))
    assert [record.data["data"] for record in records if record.data.get("name") == "rewound"] == [
        {"number": 1, "from_step": 4, "to_step": 8},
        {"number": 2, "from_step": 3, "to_step": 6},
    ]
    assert Rewinds.of(stored_run_dir, 8) == Rewinds(marked, None)
    order = [row["_step"] for row in at_wandb.rows]
    assert order == sorted(set(order))
    assert mlflow_rows(stored_run_dir) == wandb_rows(wandb_server)
    assert len(wandb_server.runs) == 1
    history = metric_history(stored_run_dir / "journal.jsonl")
    assert [step for step, _ in history["train_closs"]] == list(range(1, 9))


def test_data_checkpoints_and_best_values_are_known_to_both(stored_run_dir: Path, wandb_server: WandbDouble) -> None:
    for resume_step, steps in ((None, range(1, 6)), (5, range(6, 9))):
        run = start(stored_run_dir, resume_step=resume_step)
        run.log({"train_z_loss": math.nan}, step=steps[-2])
        log_part(run, stored_run_dir, steps, steps[-2])
        if resume_step == 5:
            run.log({"train_closs": 9.0, "train_acc_action": 0.1, "val_ind_closs": math.inf}, step=9)
            (stored_run_dir / "checkpoints" / "step-9").mkdir(parents=True)
            (stored_run_dir / "checkpoints" / "step-9" / "w.bin").write_bytes(b"w")
            run.log_artifact(stored_run_dir / "checkpoints" / "step-9", name="checkpoints/step-9", aliases=["best"])
        assert run.finish("FINISHED").complete
        (stored_run_dir / "delivery" / "mlflow-0.json").unlink()  # the next part replays everything

    stored, store = mlflow_run(stored_run_dir), client(stored_run_dir)
    inputs = [(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in stored.inputs.dataset_inputs]
    assert sorted(inputs) == [(f"demo ({split})", "abababab", split) for split in ("train", "val_ind")]
    assert models(store, stored_run_dir) == [
        (
            f"step-{s:08d}",
            s,
            {"train_closs": 10.0 - s, "action/train_acc_action": s / 10, "optim/train_lr": 1.0, "val_ind_closs": s},
        )
        for s in (4, 7)
    ]
    assert stored.data.metrics["val_ind_closs"] > 1e308
    infinite = [key for key in stored.data.tags if key.startswith("vlatrack.infinite")]
    assert infinite == ["vlatrack.infinite.val_ind_closs"]

    summary = json.loads(wandb_server.runs["u1"].summary)
    best = {key: value for key, value in summary.items() if key.startswith("best/")}
    assert best == {"best/train/closs": 2.0, "best/train/acc_action": 0.8, "best/val_ind/closs": 4.0}
    assert (summary["train/closs"], summary["train/acc_action"]) == (9.0, 0.1)
    (artifact,) = [
        a["asked"] for a in wandb_server.artifacts.values() if a["asked"]["artifactTypeName"] == "checkpoints"
    ]
    assert artifact["artifactCollectionName"] == "u1-checkpoints"
    assert {alias["alias"] for alias in artifact["aliases"]} == {"latest", "best", "step-9"}


def test_a_checkpoint_with_a_policy_is_a_model_that_mlflow_can_load(stored_run_dir: Path) -> None:
    run = start(stored_run_dir, backends=[MLFLOW])
    run.event("checkpoint", {"step": 1, "epoch": 1, "name": "step-1", "policy_sha256": "ab" * 32})
    assert run.finish("FINISHED").complete
    store = client(stored_run_dir)
    (output,) = mlflow_run(stored_run_dir).outputs.model_outputs
    model = store.get_logged_model(output.model_id)
    assert "mlflow.model.isExternal" not in model.tags
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert folder.is_relative_to(stored_run_dir.parents[1] / "mlartifacts")
    reference = json.loads((folder / "policy.reference.json").read_text())
    assert (reference["policy_sha256"], reference["checkpoint"]) == (
        "ab" * 32,
        str(stored_run_dir / "checkpoints" / "step-1"),
    )
    assert Model.load(folder).flavors["python_function"]["loader_module"] == "vlatrack.runner.pyfunc"


def test_a_policy_is_copied_whole_and_is_a_model_at_wandb(stored_run_dir: Path, wandb_server: WandbDouble) -> None:
    policy = stored_run_dir / "policies" / "step-9"
    policy.mkdir(parents=True)
    (policy / "policy.safetensors").write_bytes(b"w" * 100)
    run = start(stored_run_dir)
    run.log_artifact(policy, name="policies/step-9")
    assert run.finish("FINISHED").complete
    (artifact,) = [a["asked"] for a in wandb_server.artifacts.values() if a["asked"]["artifactTypeName"] == "model"]
    assert artifact["artifactCollectionName"] == "u1-policies"
    assert {alias["alias"] for alias in artifact["aliases"]} == {"latest", "step-9"}
    assert CopyRule(up_to_mb=0).by_reference(read_artifact("policies/step-9", "policies/step-9", stored_run_dir)) == ()
    stored = client(stored_run_dir).list_artifacts(mlflow_run(stored_run_dir).info.run_id, "policies/step-9")
    assert [file.path for file in stored] == ["policies/step-9/policy.safetensors"]


def test_a_checkpoint_with_hundreds_of_metrics_that_is_told_twice_is_one_checkpoint(stored_run_dir: Path) -> None:
    values = {f"train_l1_loss_action_{index}": index / 250 for index in range(250)}
    run = start(stored_run_dir, backends=[MLFLOW])
    run.log(values, step=1)
    run.event("checkpoint", {"step": 1, "epoch": 1, "name": "step-1"})
    assert run.finish("FINISHED").complete
    (stored_run_dir / "delivery" / "mlflow-0.json").unlink()  # what was told last is told again
    assert start(stored_run_dir, resume_step=1, backends=[MLFLOW]).finish("FINISHED").complete
    assert models(client(stored_run_dir), stored_run_dir) == [("step-1", 1, values)]


def test_mlflow_shows_commit_directory_and_system_metrics_where_its_users_look(stored_run_dir: Path) -> None:
    def begin(*, resume: bool) -> TrackedRun:
        tags = {"vlatrack.commit": "abc"}
        return TrackedRun.start(
            stored_run_dir, uid="u1", name="n", experiment="exp", backends=[MLFLOW], params={}, tags=tags, resume=resume
        )

    run = begin(resume=False)
    run.log({f"{SYSTEM}cpu_utilization_percentage": 50.0}, step=1)
    assert run.finish("FINISHED").complete
    stored = mlflow_run(stored_run_dir)
    assert stored.data.tags["mlflow.source.git.commit"] == "abc"
    assert str(stored_run_dir) in stored.data.tags["mlflow.note.content"]
    assert list(stored.data.metrics) == ["system/cpu_utilization_percentage"]  # this prefix makes MLflow's own tab
    client(stored_run_dir).set_tag(stored.info.run_id, "mlflow.note.content", "looks good")
    (stored_run_dir / "delivery" / "mlflow-0.json").unlink()
    assert begin(resume=True).finish("FINISHED").complete
    assert mlflow_run(stored_run_dir).data.tags["mlflow.note.content"] == "looks good"

"""A whole training, finished and then continued twice from earlier checkpoints, at MLflow and at W&B."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import SUPPORT, TOY
from test_delivery import mlflow_rows, mlflow_run, wandb_rows
from wandb_double import WandbDouble

from vlatrack.metrics.schema import MetricSchema
from vlatrack.tracking.journal.history import metric_history

pytestmark = pytest.mark.slow

LOGS = ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt")
BACKENDS = "tracking.backends=[{kind: mlflow}, {kind: wandb}]"
SHORT = ("train.max_steps=10", "train.checkpoint.every_steps=4", "train.checkpoint.keep_last=9")


def vlatrack(folder: Path, *arguments: str | Path) -> None:
    project = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    command = [sys.executable, "-m", "vlatrack", "run", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": project}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


def learned(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The history of what does not depend on the machine and its clock."""
    schema = MetricSchema.for_experiment(horizon=3, action_dim=2)
    history = metric_history(run / "journal.jsonl")
    return {name: points for name, points in history.items() if schema[name].group not in ("speed", "system")}


@pytest.mark.usefixtures("empty_store")
def test_a_training_continued_from_earlier_checkpoints_is_the_same_run_everywhere(
    tmp_path: Path, wandb_server: WandbDouble
) -> None:
    vlatrack(tmp_path, TOY, BACKENDS, "tracking.system_every_s=0.05", *SHORT)
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    before, logs = learned(run), [(run / name).read_text() for name in LOGS]
    for checkpoint in ("step-00000004", "step-00000008"):
        vlatrack(tmp_path, "--resume", run, "--checkpoint", checkpoint)
    assert learned(run) == before
    assert [(run / name).read_text() for name in LOGS] == logs
    made, aside = (sorted(folder.glob("step-*")) for folder in (run / "checkpoints", run / "checkpoints" / "rewound"))
    assert [path.name for path in made] == ["step-00000004", "step-00000008", "step-00000010"]
    assert [path.name for path in aside] == ["step-00000008", "step-00000010"]
    assert len({(folder[-1] / "policy.safetensors").read_bytes() for folder in (made, aside)}) == 1

    stored = mlflow_run(run)
    (at_wandb,) = wandb_server.runs.values()
    assert (stored.info.status, at_wandb.state) == ("FINISHED", "finished")
    assert stored.data.tags["vlatrack.rewound.1"] == "5-10"
    assert stored.data.tags["vlatrack.rewound.2"] == "9-10"
    assert stored.data.tags["vlatrack.gpu"]
    assert {"vlatrack.rewound.1:5-10", "vlatrack.rewound.2:9-10"} <= set(at_wandb.tags)
    steps = [row["_step"] for row in at_wandb.rows]
    assert steps == sorted(set(steps))
    # Two records of one millisecond may hold the same epoch: MLflow keeps that once.
    assert set(mlflow_rows(run)) == set(wandb_rows(wandb_server, f"{run.parent.name}-{run.name}"))
    assert {"system/cpu_percent", "system/memory_percent", "system/process_memory_mib"} <= stored.data.metrics.keys()
    assert sorted(output.step for output in stored.outputs.model_outputs) == [4, 8, 8, 10, 10, 10]
    assert {i.tags[0].value for i in stored.inputs.dataset_inputs} == {"train", "val_ind", "val_ood"}

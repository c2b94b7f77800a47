"""What `vlatrack evaluate` measures and draws beside the losses: tasks, free decoding, whole episodes, next images."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import TOY, Program

from vlatrack.metrics.schema import MetricSchema
from vlatrack.runner.evaluate import Evaluation, evaluate_run
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.patches import CodePatches
from vlatrack.training.callback import Callback

SHORT = ("train.max_steps=4", "tracking.system_every_s=null")
ALL = (
    "evaluate.details.free_samples=256",
    "evaluate.details.trajectories=3",
    "evaluate.details.frames=64",
    "evaluate.details.generated=8",
)
TWO_TASKS = "data.val_ood={kind: custom, target: 'toy_source:ToySource'}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(load_spec(TOY, SHORT), runs=tmp_path_factory.mktemp("open-loop") / "runs").path


class Counted(Callback):
    """How far each part of an evaluation came last, and in what it is counted."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[int, int, str]] = {}

    def on_evaluate(self, part: str, done: int, total: int, unit: str) -> None:
        assert done == self.parts.get(part, (0, 0, ""))[0] + 1
        self.parts[part] = (done, total, unit)


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def evaluation(run: Path, counted: Counted) -> Evaluation:
    """Its val_ood has 12 episodes of two tasks."""
    return evaluate_run(run, checkpoint="last", overrides=[TWO_TASKS, *ALL], callbacks=[counted])


def rows_of(evaluation: Evaluation, name: str) -> list[Mapping[str, str]]:
    (file,) = [file for file in evaluation.files if file.name.endswith(name)]
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.slow
def test_training_measures_next_images_and_the_evaluation_measures_the_same(run: Path) -> None:
    logged = json.loads((run / "log_eval_ind.txt").read_text().splitlines()[-1])
    again = evaluate_run(run, checkpoint="last", overrides=["data.val_ood=null"]).metrics
    named = {name.removeprefix("val_ind_"): value for name, value in again.items() if name.startswith("val_ind_")}
    assert {"closs_image_codes", "acc_image_codes", "acc_image_codes_copied", "acc_image_9"} <= named.keys()
    extra = {name for name in named if name.startswith(("psnr_", "ssim_"))}
    assert {f"val_{name}" for name in named.keys() - extra} == logged.keys() - {"epoch"}
    for name in named.keys() - extra:
        assert named[name] == pytest.approx(logged[f"val_{name}"], rel=1e-5), name
    assert named["perplexity_image_codes"] == pytest.approx(np.exp(named["closs_image_codes"]))


@pytest.mark.slow
def test_the_losses_of_action_chunks_do_not_change_with_the_images_beside_them(run: Path) -> None:
    alone = ["evaluate.open_loop.world_samples=0", "evaluate.details.frames=0", "data.val_ood=null"]
    without = evaluate_run(run, checkpoint="last", overrides=alone)
    beside = evaluate_run(run, checkpoint="last", overrides=["data.val_ood=null", "evaluate.details.frames=2"])
    of_chunks = {name: value for name, value in beside.metrics.items() if "image" not in name}
    assert {name: value for name, value in without.metrics.items() if "image" not in name} == of_chunks
    assert "val_ind_acc_image_codes" not in without.metrics


@pytest.mark.usefixtures("evaluation")
def test_an_evaluation_tells_how_far_each_of_its_parts_is(counted: Counted) -> None:
    kinds = {"": "batch", ", decoded freely": "batch", ", whole episodes": "episode", ", predicted images": "image"}
    units = {f"{split}{part}": unit for split in ("val_ind", "val_ood") for part, unit in kinds.items()}
    assert {part: unit for part, (_, _, unit) in counted.parts.items()} == units
    assert all(done == total for done, total, _ in counted.parts.values())
    assert counted.parts["val_ood, whole episodes"] == (3, 3, "episode")


def test_every_metric_is_declared_and_the_tables_have_the_same_numbers(evaluation: Evaluation) -> None:
    schema = MetricSchema.for_experiment(horizon=3, action_dim=2)
    assert all(name in schema for name in evaluation.metrics)
    cells = rows_of(evaluation, "action-errors.csv")
    assert len(cells) == 2 * 3 * 3 * 2  # splits, routes, steps, dimensions
    for route, name in {"token": "l1_loss_action", "free": "l1_loss_free", "head": "l1_loss_head"}.items():
        for step, x in enumerate((7, 8, 9)):
            errors = [
                float(cell["l1"])
                for cell in cells
                if (cell["split"], cell["route"], cell["step"], cell["X"]) == ("val_ood", route, str(step), str(x))
            ]
            assert np.mean(errors) == pytest.approx(evaluation.metrics[f"val_ood_{name}_{x}"])


def test_tasks_add_up_to_the_whole_split(evaluation: Evaluation, run: Path) -> None:
    tasks = {row["task"]: row for row in rows_of(evaluation, "tasks.csv") if row["split"] == "val_ood"}
    assert list(tasks) == ["push the square", "pull the square"]
    samples = [float(row["samples"]) for row in tasks.values()]
    assert samples == [10 * 12, 2 * 12]  # chunks of 3 in episodes of 14
    for name in ("closs", "loss_ct", "l1_loss_action", "l1_loss_free", "acc_action"):
        mean = np.average([float(row[name]) for row in tasks.values()], weights=samples)
        assert mean == pytest.approx(evaluation.metrics[f"val_ood_{name}"]), name
    stored = json.loads(evaluation.file.read_text())["tasks"]["val_ood"]["pull the square"]
    assert stored["loss_ct"] == float(tasks["pull the square"]["loss_ct"])


def test_tasks_and_figures_stand_in_the_journal_at_the_step_of_the_checkpoint(
    evaluation: Evaluation, run: Path
) -> None:
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    name = "evaluate/val_ood/task/pull_the_square/loss_ct"
    steps = {record["step"] for record in records if record["kind"] == "metrics" and name in record["data"]}
    assert steps == {4}
    artifacts = {record["data"]["name"] for record in records if record["kind"] == "artifact"}
    stem = "step-00000004"
    assert {f"evaluation/{stem}-{table}.csv" for table in ("tasks", "action-errors")} <= artifacts
    drawn = ["action-errors", "tasks", "calibration"]
    drawn += [f"{figure}-{split}" for figure in ("trajectories", "frames") for split in ("val_ind", "val_ood")]
    assert {f"figures/{stem}-{figure}.png" for figure in drawn} <= artifacts
    for file in evaluation.files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                darkest, lightest = image.convert("L").getextrema()
            assert (image.width > 600, darkest < 80, lightest == 255) == (True, True, True), file


def test_next_images_are_compared_with_what_their_codes_can_show(evaluation: Evaluation, run: Path) -> None:
    metrics = {name.removeprefix("val_ood_"): value for name, value in evaluation.metrics.items()}
    assert metrics["psnr_image"] < metrics["psnr_image_ceiling"]
    assert metrics["ssim_image"] < metrics["ssim_image_ceiling"] < 1
    assert metrics["psnr_image_copied"] < metrics["psnr_image_ceiling"]
    assert 0 < metrics["acc_image_codes_copied"] < 1
    assert metrics["psnr_image_generated"] < metrics["psnr_image_ceiling"]
    assert 0 <= metrics["acc_image_codes_generated"] < 1
    told = json.loads(evaluation.file.read_text())["image_decoder"]
    assert told == evaluation.image_decoder
    assert told.startswith("codebook lookup, not trained")


@pytest.mark.slow
def test_without_a_decoder_the_result_says_so_and_has_no_psnr(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(CodePatches, "load", lambda folder: None)
    found = evaluate_run(run, checkpoint="last", overrides=["data.val_ood=null", "evaluate.details.frames=4"])
    assert found.image_decoder == "none, so there is no PSNR and SSIM"
    assert "val_ind_acc_image_codes" in found.metrics
    assert not [name for name in found.metrics if "psnr" in name or "ssim" in name]


@pytest.mark.slow
def test_details_can_be_left_out(run: Path) -> None:
    nothing = [f"evaluate.details.{name}=0" for name in ("free_samples", "trajectories", "frames", "generated")]
    found = evaluate_run(run, checkpoint="last", overrides=[*nothing, "data.val_ood=null"])
    assert not [name for name in found.metrics if "free" in name or "psnr" in name]
    assert {file.name.removeprefix("step-00000004-") for file in found.files} == {
        *("action-errors.csv", "action-errors.png", "tasks.csv", "tasks.png", "calibration.png")
    }


@pytest.mark.slow
def test_two_processes_evaluate_as_one_in_bf16_too(program: Program) -> None:
    done = program.run("run", TOY, *SHORT, "train.precision=bf16")
    assert done.returncode == 0, done.stderr
    run, found = program.only_run(), []
    for start in (program.run, program.run_many):
        done = start("evaluate", run, "--checkpoint", "last", *ALL)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((run / "evaluation" / "step-00000004.json").read_text()))
    one, two = ({name: value for name, value in metrics.items() if name.startswith("val_")} for metrics in found)
    assert one.keys() == two.keys()
    assert {"val_ood_psnr_image", "val_ood_l1_loss_free", "val_ind_acc_image_codes_copied"} <= one.keys()
    # Batches are dealt in another way, and where two tokens are nearly as probable, bf16 may choose the other.
    same = [name for name, value in one.items() if two[name] == pytest.approx(value, rel=1e-2)]
    assert len(same) > 0.9 * len(one)

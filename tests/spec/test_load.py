"""A good YAML becomes the spec it says, with overrides, and goes back to YAML unharmed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlatrack.spec.data import LeRobotSource
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import Difference, canonical_hash, differences, flatten, split_by_resume
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.tracking import MlflowBackend, WandbBackend

YAML = """\
name: demo
backbone: {kind: chameleon, init: scratch, preset: tiny}
action_head: {time_horizon: 5, action_dim: 4}
data:
  cameras: [front, wrist]
  train: &episodes {kind: lerobot, path: some/data, part: all_but_last_tenth}
  val_ind: {<<: *episodes, part: last_tenth}
optim: {lr: 5e-6, min_lr: 1E-7}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "exp.yaml"
    path.write_text(YAML)
    return path


def spec_of(tmp_path: Path, text: str) -> ExperimentSpec:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    return load_spec(path)


def test_numbers_in_any_scientific_style_are_numbers(file: Path) -> None:
    spec = load_spec(file, ["loss.z_loss_weight=1e-4", "optim.eps=.5e-3", "optim.weight_decay=1"])
    assert (spec.optim.lr, spec.optim.min_lr) == (5e-6, 1e-7)
    assert (spec.loss.z_loss_weight, spec.optim.eps, spec.optim.weight_decay) == (1e-4, 5e-4, 1.0)


def test_words_that_older_yaml_takes_for_booleans_or_dates_are_text(file: Path) -> None:
    spec = load_spec(file, ["name=no", "data.cameras=[on, 2024-01-01, 1_000, 0x10]"])
    assert spec.name == "no"
    assert spec.data.cameras == ("on", "2024-01-01", "1_000", "0x10")


def test_an_anchor_is_merged_and_own_keys_win(file: Path) -> None:
    data = load_spec(file).data
    assert data.train == LeRobotSource(path="some/data", part="all_but_last_tenth")
    assert data.val_ind == LeRobotSource(path="some/data", part="last_tenth")


def test_overrides_reach_scalars_lists_blocks_and_blocks_that_were_null(file: Path) -> None:
    spec = load_spec(
        file,
        [
            "train.epochs=2",
            "data.cameras=[a,b]",
            "data.cameras.1=c",
            "data.train.path=x=y",
            "data.val_ind=null",
            "data.val_ood.kind=lerobot",
            "data.val_ood.path=z",
            "optim.clip_grad=null",
            "tracking.backends=[{kind: mlflow}, {kind: wandb, project: p}]",
            "tracking.backends.1.mode=offline",
        ],
    )
    assert (spec.train.epochs, spec.optim.clip_grad) == (2, None)
    assert (spec.data.cameras, spec.data.val_ind) == (("a", "c"), None)
    assert spec.data.train == LeRobotSource(path="x=y", part="all_but_last_tenth")
    assert spec.data.val_ood == LeRobotSource(path="z")
    backends = (MlflowBackend(kind="mlflow"), WandbBackend(kind="wandb", project="p", mode="offline"))
    assert spec.tracking.backends == backends


def test_an_index_reaches_into_a_default_list_that_the_file_does_not_mention(file: Path) -> None:
    spec = load_spec(file, ["tracking.backends.0.kind=wandb", "optim.betas.0=0.8"])
    assert spec.tracking.backends == (WandbBackend(kind="wandb"),)
    assert spec.optim.betas == (0.8, 0.95)


def test_the_last_of_several_overrides_wins(file: Path) -> None:
    assert load_spec(file, ["train.epochs=x", "train.epochs=7"]).train.epochs == 7


def test_a_dumped_spec_has_every_default_and_loads_to_the_same_spec(file: Path, tmp_path: Path) -> None:
    awkward = ["tracking.backends.0.experiment='5e-6'", "data.train.tasks=['no', '12', 'a: b', '2024-01-01', 'été']"]
    spec = load_spec(file, [*awkward, "tokenizer.statistics={action_low: [0,0,0,0], action_high: [1,1,1,1e-9]}"])
    text = dump_spec(spec)
    assert spec_of(tmp_path, text) == spec
    assert "keep: all" in text
    assert "cameras: [front, wrist]" in text


def test_a_hash_is_the_same_for_any_style_order_and_process(file: Path, tmp_path: Path) -> None:
    spec = load_spec(file)
    block = YAML.replace("{lr: 5e-6, min_lr: 1E-7}", "\n  min_lr: 0.0000001\n  lr: 0.000005\n  weight_decay: 0.150")
    assert "lr: 0.000005" in block
    assert canonical_hash(spec_of(tmp_path, block)) == canonical_hash(spec)
    code = (
        "import sys, pathlib; from vlatrack.spec.load import load_spec; "
        "from vlatrack.spec.identity import canonical_hash; print(canonical_hash(load_spec(pathlib.Path(sys.argv[1]))))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == canonical_hash(spec)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "tracking.backends=[]",
        "tracking.log_every=1",
        "train.device=cpu",
        "train.workers=4",
        "train.memory.keep=none",
        "train.memory.offload=activations",
        "train.memory.offload=parameters",
        "train.micro_batch=2",
        "train.checkpoint.keep_last=9",
        "evaluate.open_loop.batch_size=1",
        "evaluate.closed_loop={evaluation: arena.yaml, every_epochs: 2}",
        "data.train.path=elsewhere",
        "data.recorded={rotation: 0, prompt: name, gripper: openvla, waits: 10}",
    ],
)
def test_a_hash_ignores_what_does_not_decide_the_result(file: Path, override: str) -> None:
    assert load_spec(file, [override]) != load_spec(file)
    assert canonical_hash(load_spec(file, [override])) == canonical_hash(load_spec(file))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optim.lr=6e-6",
        "train.precision=fp32",
        "data.cameras=[wrist, front]",
        "data.val_ind=null",
        "train.early_stopping={patience: 3}",
    ],
)
def test_a_hash_changes_with_what_decides_the_result(file: Path, override: str) -> None:
    assert canonical_hash(load_spec(file, [override])) != canonical_hash(load_spec(file))


def test_a_hash_changes_with_the_data_that_a_path_names(file: Path) -> None:
    spec = load_spec(file)
    assert canonical_hash(spec, {"data.train": "a"}) != canonical_hash(spec, {"data.train": "b"})


def test_a_setting_that_a_later_version_adds_leaves_the_hash_and_a_resume_alone(file: Path) -> None:
    spec = load_spec(file)
    before = {path: value for path, value in flatten(spec).items() if path != "train.non_finite"}
    assert differences(before, flatten(spec)) == []
    assert canonical_hash(load_spec(file, ["train.non_finite=skip"])) != canonical_hash(spec)
    assert canonical_hash(load_spec(file, ["data.history_start=shorter"])) != canonical_hash(spec)
    assert canonical_hash(load_spec(file, ["data.history_deltas=[-0.5, 0]"])) != canonical_hash(spec)
    assert canonical_hash(load_spec(file, ["data.images=stream"])) != canonical_hash(spec)


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=80",
        "train.device=cpu",
        "tracking.log_every=3",
        "train.workers=2",
        "train.early_stopping={patience: 3}",
    ],
)
def test_a_run_may_go_on_with(file: Path, override: str) -> None:
    changes = differences(flatten(load_spec(file)), flatten(load_spec(file, [override])))
    forbidden, allowed = split_by_resume(changes)
    assert forbidden == []
    assert len(allowed) == 1


@pytest.mark.parametrize(
    "override", ["train.epochs=1", "optim.lr=1", "seed=9", "train.batch_size=1", "tokenizer.bins=9"]
)
def test_a_run_may_not_go_on_with(file: Path, override: str) -> None:
    forbidden, _ = split_by_resume(differences(flatten(load_spec(file)), flatten(load_spec(file, [override]))))
    assert len(forbidden) == 1


def test_a_spec_without_open_loop_evaluation_has_a_hash(file: Path) -> None:
    assert len(canonical_hash(load_spec(file, ["evaluate.open_loop=null"]))) == 64


def test_flat_settings_are_scalars_under_their_dotted_path(file: Path) -> None:
    flat = flatten(load_spec(file, ["tracking.backends=[{kind: wandb}]"]))
    expected = {"optim.lr": 5e-6, "train.epochs": 40, "data.val_ood": None, "data.use_state": True}
    assert expected.items() <= flat.items()
    assert flat["tracking.backends.0.kind"] == "wandb"
    assert json.loads(str(flat["data.cameras"])) == ["front", "wrist"]
    assert all(value is None or isinstance(value, str | int | float) for value in flat.values())


def test_a_difference_names_path_before_and_after_and_ignores_style(file: Path, tmp_path: Path) -> None:
    before = load_spec(file)
    assert differences(flatten(before), flatten(spec_of(tmp_path, dump_spec(before)))) == []
    after = load_spec(file, ["optim.lr=1e-5", "data.cameras=[front]"])
    changes = differences(flatten(before), flatten(after))
    assert changes == [
        Difference("data.cameras", '["front", "wrist"]', '["front"]'),
        Difference("optim.lr", 5e-6, 1e-5),
    ]
    assert str(changes[1]) == "optim.lr: 5e-06 -> 1e-05"


def test_a_difference_of_kinds_lists_the_keys_that_came_and_went(file: Path) -> None:
    changes = differences(flatten(load_spec(file)), flatten(load_spec(file, ["tracking.backends.0.kind=wandb"])))
    assert Difference("tracking.backends.0.kind", "mlflow", "wandb") in changes
    assert Difference("tracking.backends.0.mode", None, "auto") in changes

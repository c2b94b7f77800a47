"""From a spec to the objects of a training, and what is said before it begins."""

import math
from pathlib import Path

import pytest
import torch
from program import TOY

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.training import build_accelerator, build_training, compiles_layers, training_warnings
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.states import MetricStates
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.spec.migrate import migrate_flat
from vlatrack.training.callback import SplitResult
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import Training
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState


def _training(tmp_path: Path, *overrides: str) -> tuple[Experiment, Training]:
    spec = load_spec(TOY, overrides)
    experiment, group, device = (
        Experiment.new(spec, store=TokenStore(tmp_path / "data")),
        ProcessGroup(),
        torch.device("cpu"),
    )
    policy = experiment.policy(device)
    encoding = experiment.encoding(policy.layout, tmp_path / "tokenizer", device)
    samples = experiment.samples(encoding)
    training = build_training(experiment, policy, samples["train"], build_accelerator(spec), group, Interruption(group))
    return experiment, training


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], []),
        (
            ["train.max_steps=20"],
            [
                "train.max_steps = 20 ends the training before the cosine, which spans the 45 steps of "
                "train.epochs = 3: the last learning rate is 0.0012, not 0"
            ],
        ),
        (["train.max_steps=20", "optim.schedule=constant"], []),
        (
            ["train.max_steps=20", "optim.warmup_epochs=2"],
            [
                "train.max_steps = 20 ends the training inside the warm-up of 30 steps: the learning rate never "
                "reaches optim.lr"
            ],
        ),
        (
            ["evaluate.open_loop=null"],
            [
                "train.checkpoint.best_metric = val_ind_loss_ct is never measured (data.val_… or evaluate.open_loop is "
                "null); the best checkpoint is the last one"
            ],
        ),
        (["evaluate.open_loop=null", "train.checkpoint.best_metric=train_loss"], []),
    ],
    ids=["nothing", "cosine", "constant", "warm-up", "best", "best of training"],
)
def test_what_is_allowed_but_probably_not_meant_is_said(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    experiment, training = _training(tmp_path, *overrides)
    assert training_warnings(experiment, training, TrainState()) == told


def test_a_training_of_no_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_source.STEPS", 1)
    with pytest.raises(DataError, match="no episode is long enough for a sample, so nothing could be trained"):
        _training(tmp_path, "data.samples=[world_model]", "action_head.time_horizon=1")


def test_a_gpu_that_is_not_there_is_said_before_anything_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"train\.device: cuda, but torch sees no GPU here; use auto or cpu"):
        run_experiment(load_spec(TOY, ["train.device=cuda"]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("metric", "values", "best_step"),
    [
        ("val_ind_loss_ct", [0.5, 0.3, 0.4, math.nan, 0.3], 2),
        ("val_ind_acc_action", [0.5, 0.3, math.inf, 0.7, math.nan], 4),
        ("val_ind_closs", [math.nan, math.nan, 9.0, math.inf, 8.0], 5),
    ],
)
def test_the_best_checkpoint_is_the_one_of_the_declared_direction_and_never_a_nan(
    tmp_path: Path, metric: str, values: list[float], best_step: int
) -> None:
    _, training = _training(tmp_path, f"train.checkpoint.best_metric={metric}")
    state = TrainState()
    for step, value in enumerate(values, start=1):
        state.step = step
        result = SplitResult({metric.removeprefix("val_ind_"): value}, MetricStates())
        training._update_best(state, {"val_ind": result})
    assert state.best_step == best_step


def test_the_settings_of_an_old_journal_are_read_in_todays_words() -> None:
    old = {"optim.lr": 1e-3, "train.batch_size": 8, "train.accumulate": 2, "train.epochs": 3}
    assert migrate_flat(old) == {
        "optim.lr": 1e-3,
        "train.batch_size": 16,
        "train.micro_batch": 8,
        "train.epochs": 3,
    }


def test_an_old_file_gets_one_clear_line_for_the_batch_size(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(TOY.read_text().replace("batch_size: 16, micro_batch: 8", "batch_size: 8, accumulate: 2"))
    with pytest.raises(SpecError) as caught:
        load_spec(old)
    assert str(caught.value) == (
        f"{old}:13  train.accumulate: this key is gone: set train.batch_size to the samples of one optimiser step over "
        "all processes, and train.micro_batch to those of one forward pass (here 16 and 8)"
    )
    assert load_spec(old, stored=True) == load_spec(TOY, stored=True)  # the spec.yaml of an old run


def test_compilation_without_a_compiler_is_said_before_anything_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    told = (
        r"^train\.compile: needs a C\+\+ compiler \(g\+\+\), which is not on the path; install it, or set it to false$"
    )
    with pytest.raises(SpecError, match=told):
        run_experiment(load_spec(TOY, ["train.compile=true"]), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_layers_are_compiled_by_default_where_there_is_a_gpu_and_a_compiler(tmp_path: Path, monkeypatch) -> None:
    gpu, cpu, spec = torch.device("cuda"), torch.device("cpu"), load_spec(TOY)
    compiler = tmp_path / "my-cc"
    compiler.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "my-cc")
    assert (compiles_layers(spec, gpu), compiles_layers(spec, cpu)) == (True, False)
    monkeypatch.delenv("CC")
    assert not compiles_layers(spec, gpu)

"""A sweep's file: what it asks for is checked against its experiment before any trial begins."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from program import TOY

from vlatrack.errors import SpecError
from vlatrack.spec.load import load_spec
from vlatrack.spec.sweep_file import Sweep, is_sweep, load_sweep

ROOT = Path(__file__).parents[2]
SWEEP = """\
name: toy-sweep
experiment: toy.yaml
overrides: {train.max_steps: 4}
space:
  optim.lr: {log: [1.0e-5, 1.0e-2]}
  train.batch_size: {range: [8, 39], step: 8}
  loss.z_loss_weight: {choices: [0, 1.0e-5]}
objectives: [{metric: val_ind_loss_ct}]
trials: 4
"""


@pytest.fixture
def write(tmp_path: Path):
    shutil.copy(TOY, tmp_path / "toy.yaml")

    def written(text: str) -> Path:
        file = tmp_path / "sweep.yaml"
        file.write_text(text)
        return file

    return written


def mistakes(file: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_sweep(file)
    return [line.removeprefix(f"{file}") for line in str(caught.value).splitlines()]


def test_numbers_have_the_type_of_their_setting(write) -> None:
    sweep = load_sweep(write(SWEEP))
    assert [(axis.path, axis.number) for axis in sweep.axes] == [
        ("optim.lr", float),
        ("train.batch_size", int),
        ("loss.z_loss_weight", None),
    ]
    assert sweep.axes[1].bounds == (8, 32)  # the last step below 39


def test_a_run_has_the_overrides_the_values_and_the_seed_of_its_trial(write) -> None:
    sweep = load_sweep(write(SWEEP + "seeds: [5, 7]\n"))
    values = {"optim.lr": 1.2345678901234567e-5, "train.batch_size": 16, "loss.z_loss_weight": 1e-5}
    spec = load_spec(sweep.experiment_file, sweep.overrides(values, 7))
    assert (spec.optim.lr, spec.train.batch_size, spec.loss.z_loss_weight) == (1.2345678901234567e-5, 16, 1e-5)
    assert (spec.train.max_steps, spec.seed) == (4, 7)
    assert sweep.experiment.tracking.group == "toy-sweep"


def test_choices_may_be_texts_lists_and_null(write) -> None:
    choices = "optim.betas: {choices: [[0.9, 0.95], [0.9, 0.99]]}\n  optim.clip_grad: {choices: [null, 1.0]}\n"
    sweep = load_sweep(write(SWEEP.replace("optim.lr: {log: [1.0e-5, 1.0e-2]}\n", choices)))
    spec = load_spec(sweep.experiment_file, sweep.overrides({"optim.betas": [0.9, 0.99], "optim.clip_grad": None}, 0))
    assert (spec.optim.betas, spec.optim.clip_grad) == ((0.9, 0.99), None)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("optim.lr:", "optim.lrr:", ":5  space: optim.lrr: unknown key (did you mean 'lr'?)"),
        ("max_steps", "max_step", ":3  overrides: train.max_step: unknown key (did you mean 'max_steps'?)"),
        ("{log: [1.0e-5,", "{log: [0,", ":5  space.optim.lr.log.0: must be above 0, got 0"),
        ("[1.0e-5, 1.0e-2]", "[1, 0.1]", ":5  space.optim.lr: log: 1 is not below 0.1; write the lowest value first"),
        ("[8, 39]", "[0, 39]", ":6  space: train.batch_size: must be above 0, got 0"),
        ("[8, 39]", "[8.5, 39]", ":6  space.train.batch_size: is an integer, and 8.5 is none"),
        ("[0, 1.0e-5]", "[0, -1]", ":7  space: loss.z_loss_weight: must be at least 0, got -1"),
        ("[0, 1.0e-5]", "[0, 0]", ":7  space.loss.z_loss_weight: choices: 0 is listed twice; list it once"),
        ("val_ind_loss_ct", "val_ind_los_ct", "no metric is called val_ind_los_ct (did you mean val_ind_loss_ct?)"),
        ("val_ind_loss_ct", "train_lr", ":8  objectives.0.metric: neither lower nor higher is better of train_lr"),
        ("val_ind_loss_ct", "sim/x/success", "is what evaluate.closed_loop of the experiment measures, and there is"),
        ("trials: 4", "trails: 4", ":9  trails: unknown key (did you mean 'trials'?)"),
        ("trials: 4", "", "trials: how many is required with sampler.kind = tpe"),
        ("trials: 4", "trials: 4\nsampler: {kind: grid}", "sampler.kind = grid needs choices, or a range with a step"),
        ("trials: 4", "trials: 4\npruner: {kind: medain}", "pruner.kind: expected 'median', 'halving' or 'hyperband'"),
        (
            "trials: 4",
            "trials: 4\npruner: {kind: median, metric: val_los}",
            "pruner.metric: no metric is called val_los",
        ),
        ("toy.yaml", "toi.yaml", "toi.yaml: no such file; the path is taken from the folder of the sweep's file"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(write, before: str, after: str, told: str) -> None:
    assert before in SWEEP
    (line,) = mistakes(write(SWEEP.replace(before, after)))
    assert told in line


def test_an_end_that_fits_only_together_with_another_dimension_is_no_mistake(write) -> None:
    two = "optim.lr: {log: [1.0e-5, 1.0e-2]}\n  optim.min_lr: {log: [1.0e-6, 5.0e-3]}\n"
    alone = "optim.min_lr: {log: [1.0e-6, 5.0e-3]}\n"  # the experiment's lr is 2e-3
    load_sweep(write(SWEEP.replace("optim.lr: {log: [1.0e-5, 1.0e-2]}\n", two)))
    (line,) = mistakes(write(SWEEP.replace("optim.lr: {log: [1.0e-5, 1.0e-2]}\n", alone)))
    assert "optim.min_lr = 0.005 is above optim.lr = 0.002" in line


def test_a_grid_is_as_large_as_its_combinations(write) -> None:
    grid = yaml.safe_load(SWEEP) | {"sampler": {"kind": "grid"}}
    del grid["space"]["optim.lr"], grid["trials"]
    sweep: Sweep = load_sweep(write(yaml.safe_dump(grid)))
    assert (sweep.grid_size, sweep.trials) == (8, 8)
    assert sweep.axes[0].grid() + sweep.axes[1].grid() in ([8, 16, 24, 32, 0, 1e-5], [0, 1e-5, 8, 16, 24, 32])


def test_a_sweep_is_told_from_an_experiment(write) -> None:
    assert is_sweep(write(SWEEP))
    assert not is_sweep(TOY)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_sweep_fits_its_experiment(file: Path) -> None:
    assert load_sweep(file).experiment.tracking.group == load_sweep(file).spec.name


def test_the_sweep_of_the_documentation_fits_the_quickstart(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL)
    shutil.copy(ROOT / "experiments" / "quickstart.yaml", tmp_path)
    file = tmp_path / "sweep.yaml"
    file.write_text(shown.replace("../quickstart.yaml", "quickstart.yaml"))
    sweep = load_sweep(file)
    assert (sweep.trials, sweep.seeds) == (40, (0, 1, 2))

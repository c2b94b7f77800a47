"""The database of a sweep: what is tried, in which order, by whom; the trials here end without a training."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from optuna.trial import TrialState

from vlatrack.errors import SpecError, TrackerError
from vlatrack.spec.sweep_file import load_sweep
from vlatrack.sweep.page import render_page
from vlatrack.sweep.pruning import report
from vlatrack.sweep.results import SweepResults, TrialRow, best_experiment
from vlatrack.sweep.storage import open_storage
from vlatrack.sweep.study import SweepStudy, drop_sweep
from vlatrack.sweep.trials import LiveTrial
from vlatrack.tracking.lock import Holder, process_here

Open = Callable[..., SweepStudy]


def begun(study: SweepStudy) -> LiveTrial:
    trial = study.begin()
    assert trial is not None
    return trial


def complete(study: SweepStudy, *values: float) -> LiveTrial:
    trial = begun(study)
    for seed, value in zip(study.sweep.seeds, values, strict=True):
        study.note_values(trial, seed, [value])
    study.complete(trial)
    return trial


def dead_process() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = process_here(process.pid)
    assert holder is not None
    process.communicate()
    return holder


def test_a_configuration_is_judged_by_the_mean_over_its_seeds(opened: Open) -> None:
    study = opened(seeds=[1, 2])
    complete(study, 1.0, 4.0)
    complete(study, 2.0, 2.0)
    results = SweepResults.of(study)
    assert [row.values for row in results.rows] == [(2.5,), (2.0,)]
    assert [row.number for row in results.best] == [2]


def test_the_declaration_of_a_metric_says_what_is_better(opened: Open) -> None:
    study = opened(objectives=[{"metric": "val_ind_acc_action"}])
    complete(study, 0.2)
    complete(study, 0.9)
    assert study.directions == ["maximize"]
    assert [row.number for row in SweepResults.of(study).best] == [2]


@pytest.mark.parametrize(("metric", "good", "bad"), [("val_ind_closs", 1.0, 9.0), ("val_ind_acc_action", 0.9, 0.1)])
@pytest.mark.parametrize("objective", ["val_ind_loss_ct", None], ids=["beside", "itself"])
def test_the_pruner_ends_what_is_worse_by_the_metric_that_it_watches(
    opened: Open, objective: str | None, metric: str, good: float, bad: float
) -> None:
    pruner = {"kind": "median", "metric": metric, "startup_trials": 1}
    study = opened(objectives=[{"metric": objective or metric}], pruner=pruner)
    first = begun(study)
    assert not report(first, 1, (good + bad) / 2)
    study.note_values(first, study.sweep.seeds[0], [0.5])
    study.complete(first)
    second, third = begun(study), begun(study)
    assert not report(second, 1, good)
    assert report(third, 1, bad)


def test_a_trial_whose_worker_died_is_begun_anew_with_what_it_had_and_counts_once(opened: Open, tmp_path: Path) -> None:
    pruner = {"kind": "median", "startup_trials": 1}
    study = opened(seeds=[1, 2], trials=1, pruner=pruner)
    lost = begun(study)
    study.note_run(lost, 1, tmp_path / "runs" / "toy" / "run-1")
    study.note_values(lost, 1, [3.0])
    report(lost, 1, 0.25)
    study.study._storage.set_trial_user_attr(lost.watched._trial_id, "worker", asdict(dead_process()))
    again = begun(opened(seeds=[1, 2], trials=1, pruner=pruner))
    assert again.settings == lost.settings
    assert (again.runs, again.values, again.reported) == ({1: "toy/run-1"}, {1: [3.0]}, {1})
    assert again.number != lost.number
    (row,) = SweepResults.of(study).rows
    assert (row.number, row.state) == (1, "running")
    assert study.begin() is None


def test_a_trial_of_a_living_worker_is_left_to_it(opened: Open) -> None:
    first = begun(opened(trials=1))
    assert opened(trials=1).begin() is None
    assert first.number == 0


def test_a_configuration_that_kills_every_worker_fails(opened: Open) -> None:
    study = opened(trials=1)
    for _ in range(3):
        trial = begun(study)
        study.requeue(trial.number, died=True)
    assert study.begin() is None
    (row,) = SweepResults.of(study).rows
    assert (row.state, row.reason) == ("failed", "its worker died 3 times")


def test_workers_on_two_machines_that_begin_the_last_trial_at_once_train_it_once(opened: Open) -> None:
    study = opened(trials=2)
    begun(study)
    begun(study)
    study.study.ask()  # as one that had counted a moment earlier
    late = study.study.get_trials()[-1]
    assert study._is_surplus(late.number, late.params)


def test_a_sweep_that_stops_goes_on_with_the_configurations_that_it_would_have_had(opened: Open) -> None:
    study = opened(trials=5, sampler={"kind": "tpe", "startup_trials": 3})
    whole = [complete(study, 1.0 / (1 + number)).settings for number in range(5)]
    drop_sweep(study.folder)
    parts = [complete(opened(trials=5, sampler={"kind": "tpe", "startup_trials": 3}), 1.0 / (1 + n)) for n in range(5)]
    assert [trial.settings for trial in parts] == whole


def test_a_grid_tries_every_combination_once(opened: Open) -> None:
    space = {"optim.lr": {"choices": [1e-3, 1e-4]}, "train.epochs": {"range": [1, 5], "step": 2}}
    study = opened(space=space, sampler={"kind": "grid"}, trials=None)
    tried = [tuple(complete(study, 1.0).settings.values()) for _ in range(6)]
    assert sorted(tried) == [(lr, epochs) for lr in (1e-4, 1e-3) for epochs in (1, 3, 5)]
    assert study.is_done()


def test_a_changed_sweep_of_the_same_name_is_refused_with_what_has_changed(opened: Open) -> None:
    opened()
    opened(trials=9, parallel=2)  # how many, and how many at once, may change
    with pytest.raises(SpecError) as caught:
        opened(space={"optim.lr": {"log": [1e-5, 1e-3]}})
    assert "(space.optim.lr.log: [1e-05, 0.01] -> [1e-05, 0.001])" in str(caught.value)
    with pytest.raises(SpecError, match=r"overrides\.train\.epochs: null -> 2"):
        opened(overrides={"train.epochs": 2})


def test_a_changed_experiment_is_refused_but_not_another_path_of_its_data(opened: Open, sweep_file) -> None:
    study = opened()
    experiment = study.sweep.experiment_file
    text = experiment.read_text()
    experiment.write_text(text.replace("log_every: 4", "log_every: 2"))
    SweepStudy(load_sweep(study.sweep.file), study.folder)
    experiment.write_text(text.replace("seed: 3", "seed: 4"))
    with pytest.raises(SpecError, match="seed: 3 -> 4"):
        SweepStudy(load_sweep(study.sweep.file), study.folder)


def test_the_front_holds_what_no_other_configuration_beats_in_all_objectives(opened: Open) -> None:
    study = opened(objectives=[{"metric": "val_ind_loss_ct"}, {"metric": "val_ind_acc_action"}])
    for values in ([1.0, 0.5], [2.0, 0.9], [2.0, 0.4]):
        trial = begun(study)
        study.note_values(trial, study.sweep.seeds[0], values)
        study.complete(trial)
    assert [row.number for row in SweepResults.of(study).best] == [1, 2]


def test_a_run_that_the_database_names_outside_the_runs_folder_is_no_run(opened: Open) -> None:
    folder = opened().folder
    assert folder.run_dir("../../etc") is None
    assert folder.run_dir("/etc") is None


def test_the_best_experiment_is_one_that_run_takes(opened: Open, tmp_path: Path) -> None:
    from vlatrack.spec.load import load_spec

    study = opened(seeds=[5, 6])
    trial = complete(study, 1.0, 1.0)
    file = tmp_path / "best.yaml"
    file.write_text(best_experiment(study.sweep, SweepResults.of(study).best[0]))
    spec = load_spec(file)
    assert (spec.optim.lr, spec.seed, spec.tracking.group) == (trial.settings["optim.lr"], 5, None)


def hostile_results() -> SweepResults:
    evil = "<script>alert(1)</script>"
    rows = [
        TrialRow(1, "complete", {evil: 'a"b', "x": 1.0}, (1.0,), None, {0: f"toy/{evil}"}, 3.0),
        TrialRow(2, "complete", {evil: "c", "x": 2.0}, (2.0,), None, {0: "toy/b"}, 3.0),
        TrialRow(3, "failed", {evil: "=1+1", "x": 2.0}, None, evil, {}, None),
    ]
    return SweepResults(
        evil, ("val_ind_loss_ct",), ("minimize",), (evil, "x"), frozenset({"x"}), 3, tuple(rows), {evil: {evil: 0.5}}
    )


def test_the_page_needs_nothing_else_and_runs_no_text_of_others() -> None:
    page = render_page(hostile_results())
    assert page.count("<script>") == 1  # its own
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<polyline") == 2


def test_the_table_holds_no_formula() -> None:
    (_, *_, failed) = hostile_results().table().splitlines()
    assert "'=1+1" in failed


def test_importances_say_which_setting_mattered(opened: Open) -> None:
    space = {"optim.lr": {"log": [1e-5, 1e-2]}, "optim.weight_decay": {"range": [0, 1]}}
    study = opened(space=space, trials=12, sampler={"kind": "random"})
    for _ in range(12):
        trial = begun(study)
        study.note_values(trial, study.sweep.seeds[0], [float(trial.settings["optim.weight_decay"])])
        study.complete(trial)
    shares = SweepResults.of(study).importances["val_ind_loss_ct"]
    assert shares["optim.weight_decay"] > 0.8
    assert json.dumps(shares)


def test_a_database_that_is_none_is_one_line(opened: Open) -> None:
    folder = opened().folder
    folder.database.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(TrackerError) as caught:
        open_storage(folder)
    assert "\n" not in str(caught.value)
    assert "file is not a database" in str(caught.value)


def test_states_are_those_of_the_database(opened: Open) -> None:
    study = opened(trials=4)
    complete(study, 1.0)
    study.prune(begun(study), "pruned after epoch 1")
    study.fail(begun(study).number, "out of memory")
    begun(study)
    assert [row.state for row in SweepResults.of(study).rows] == ["complete", "pruned", "failed", "running"]
    assert [trial.state for trial in study.trials()][1] == TrialState.PRUNED

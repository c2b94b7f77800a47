"""Old output folders become runs: log files, event files, both; as real processes, delivered to MLflow."""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from vlatrack.errors import DataError, MissingPackageError
from vlatrack.importers.rynnvla import find_sources, read_rows
from vlatrack.tracking.journal.history import metric_history

MTIME = 1_700_000_000
Old = Callable[..., Path]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An output folder of three epochs as the reference leaves it, with names that vlatrack does not know."""
    folder = tmp_path / "output"
    folder.mkdir()
    for name, prefix in (("log_train.txt", "train_"), ("log_eval_ind.txt", "val_"), ("log_eval_ood.txt", "val_")):
        lines = [
            {f"{prefix}closs": 3 - e, f"{prefix}l1_loss_action_5": e / 7, f"{prefix}acc_odd": 0.5, "epoch": e}
            for e in range(3)
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(folder / name, (MTIME, MTIME))
    return folder


def add_events(folder: Path, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    """An event file with (step, wall time, values) rows."""
    writer = EventFileWriter(str(folder))
    for step, time, values in rows:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=time, step=step, summary=summary))
    writer.close()


def stored_runs(runs: Path) -> list[Run]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's models use what SQLAlchemy 2.1 deprecates
        client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.mark.slow
def test_an_output_folder_becomes_one_finished_run_however_often_it_is_imported(program, old: Path) -> None:
    done = program.run("import", old, "--name", "libero")
    assert done.returncode == 0, done.stderr
    assert "not declared in the metric schema: train_acc_odd, val_ind_acc_odd, val_ood_acc_odd" in done.stdout
    (run,) = (program.folder / "runs" / "libero").iterdir()
    (stored,) = stored_runs(program.folder / "runs")
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", run.name)
    assert (stored.info.start_time, stored.info.end_time) == (MTIME * 1000, MTIME * 1000)
    assert stored.data.metrics["train_closs"] == stored.data.metrics["val_ood_closs"] == 1.0
    assert stored.data.metrics["val_ind_acc_odd"] == 0.5
    assert metric_history(run / "journal.jsonl")["val_ind_closs"] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert (run / "log_train.txt").read_bytes() == (old / "log_train.txt").read_bytes()
    assert {"losses.png", "action_l1.png"} <= {figure.name for figure in (run / "report").iterdir()}
    before = (run / "journal.jsonl").read_bytes()

    again = program.run("import", *sorted(old.iterdir()), "--name", "libero")
    assert again.returncode == 0, again.stderr
    assert "already imported and delivered" in again.stdout
    assert (run / "journal.jsonl").read_bytes() == before
    assert len(stored_runs(program.folder / "runs")) == 1

    elsewhere = program.run(
        "import", old, "--name", "libero", "--backends", "[{kind: mlflow, tracking_uri: 'sqlite:///other.db'}]"
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert len(list((program.folder / "runs" / "libero").iterdir())) == 1
    client = MlflowClient(f"sqlite:///{program.folder / 'other.db'}")
    (other,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert other.data.metrics == stored.data.metrics
    assert other.info.status == "FINISHED"


def test_event_files_give_steps_and_times_and_the_log_files_what_they_lack(old: Path) -> None:
    rows = [(step, 1000.0 + step, {"train_closs": step / 2, "closs": 9.0, "grad_norm": 1.0}) for step in range(30)]
    add_events(old / "tensorboard", [*rows, (29, 2000.0, {"train_closs": -1.0, "val_closs": 7.0})])
    found = read_rows(find_sources([old]))
    assert [row.step for row in found.rows] == sorted(row.step for row in found.rows)
    values = [(row.step, row.t_ms, row.values["train_closs"]) for row in found.rows if "train_closs" in row.values]
    assert values == [*((s, 1_000_000 + 1000 * s, s / 2) for s in range(30)), (29, 2_000_000, -1.0)]
    epochs = [(row.step, row.t_ms) for row in found.rows if "val_ind_closs" in row.values]
    assert epochs == [(9, 1_009_000), (19, 1_019_000), (29, 2_000_000)]
    assert {"train_grad_norm", "closs", "val_closs"} <= {name for row in found.rows for name in row.values}
    assert "one epoch is 10 steps, derived from the last step of the event files" in found.notices
    assert "values of single steps from the event files, instead of means of epochs: train_closs" in found.notices
    placed = read_rows(find_sources([old]), steps_per_epoch=7).rows
    assert [row.step for row in placed if "val_ood_closs" in row.values] == [6, 13, 20]


def test_what_cannot_be_imported_is_one_line_with_its_place(
    program, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (old / "log_eval_ood.txt").open("a") as file:
        file.write('{"val_closs": 1.')
    done = program.run("import", old, "--name", "x")
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {old}/log_eval_ood.txt:4: not a JSON object of numbers; remove the line"
    assert not (program.folder / "runs").exists()
    (old / "log_eval_ood.txt").write_text('{"val_closs": 1.0, "epoch": NaN}\n')
    with pytest.raises(DataError, match=r"log_eval_ood.txt:1: epoch nan is not the number of an epoch"):
        read_rows(find_sources([old]))
    (old / "log_eval_ood.txt").unlink()

    (tmp_path / "empty").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "log_train.txt").write_text("")
    for paths, told in (
        ([tmp_path / "gone"], "gone: cannot be read .No such file or directory.; give another path"),
        ([tmp_path / ("a" * 300)], "cannot be read .File name too long."),
        ([tmp_path / "empty"], "holds none of log_train.txt"),
        ([old, tmp_path / "copy"], "a second log_train.txt"),
        ([Path(__file__)], "neither a log file nor an event file by its name"),
    ):
        with pytest.raises(DataError, match=told):
            find_sources(paths)
    with pytest.raises(DataError, match="no values to import"):
        read_rows(find_sources([tmp_path / "copy"]))
    (old / "events.out.tfevents.1.x").write_bytes(b"not an event file, but long enough for one")
    with pytest.raises(DataError, match="not a TensorBoard event file"):
        read_rows(find_sources([old]))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[tensorboard\]'"):
        read_rows(find_sources([old]))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f'{{"epoch": {"9" * 400}}}', ":1: epoch 999999999999 is not the number of an epoch; remove the line"),
        ('{"epoch": 1e300}', ":1: epoch 1e[+]300 is not the number of an epoch; remove the line"),
        (f'{{"train_closs": {"9" * 400}}}', ":1: train_closs is larger than any float; remove the line"),
        ('{"a":' * 100_000, ":1: not a JSON object of numbers; remove the line"),
    ],
)
def test_a_number_that_is_none_of_a_training_is_one_line_with_its_place(old: Path, line: str, told: str) -> None:
    (old / "log_train.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=rf"log_train\.txt{told}"):
        read_rows(find_sources([old]))


def test_epochs_below_zero_need_the_length_of_an_epoch_beside_event_files(old: Path) -> None:
    for file in old.iterdir():
        file.write_text('{"x_closs": 1.0, "epoch": -1}\n')
    add_events(old / "tensorboard", [(step, 1000.0 + step, {"train_closs": 1.0}) for step in range(30)])
    told = r"log_train\.txt, log_eval_ind\.txt, log_eval_ood\.txt: only epochs below 0.*; give --steps-per-epoch"
    with pytest.raises(DataError, match=told):
        read_rows(find_sources([old]))
    assert [row.step for row in read_rows(find_sources([old]), steps_per_epoch=10).rows][:4] == [-1, -1, -1, 0]


@pytest.mark.parametrize("time", [math.nan, math.inf, 1e300])
def test_a_time_of_an_event_file_that_is_none_is_one_line(old: Path, time: float) -> None:
    add_events(old, [(0, 1000.0, {"train_closs": 1.0}), (7, time, {"train_closs": 1.0})])
    with pytest.raises(DataError, match=r"events\.out\.tfevents\.\S+: step 7 has the time \S+; leave the file out"):
        read_rows(find_sources([old]))


def test_a_mistake_in_the_options_of_an_import_is_one_line(program, old: Path) -> None:
    for options, told in (
        (("--name", "a/b"), "--name 'a/b': use at most 100 letters"),
        (("--name", "x", "--backends", "[{kind: mlflw}]"), "--backends: backends.0"),
        (("--name", "x", "--backends", "[{kind: mlflow, uri: x}]"), "backends.0.mlflow.uri"),
        (
            ("--name", "x", "--runs", old / "log_train.txt"),
            "log_train.txt: not a folder; choose another folder for the runs with --runs",
        ),
    ):
        done = program.run("import", old, *options)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert told in done.stderr

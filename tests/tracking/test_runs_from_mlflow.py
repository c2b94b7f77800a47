"""Runs that only MLflow has: compared, shown and written as if their directory were here."""

import json
import math
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from program import TOY
from test_evaluations import deliver

from vlatrack import compare_runs
from vlatrack.errors import VlatrackError
from vlatrack.runner.comparison.finding import run_folder
from vlatrack.runner.comparison.recorded import RecordedRun
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.artifacts import artifact_data
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.journal.records import Kind


@pytest.fixture
def runs(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path / "runs"


def example_run(folder: Path, *files: str, name: str = "a/../run") -> ExampleRun:
    """A finished run below a folder with metrics of all kinds, which has logged these files."""
    run = ExampleRun(folder)
    spec = load_spec(TOY)
    (run.dir / "journal.jsonl").unlink()
    start = {"name": name, "experiment": "contract", "tags": {"by": "test", "vlatrack.commit": "abc"}, "group": None}
    run.append(Kind.START, {**start, "params": flatten(spec)})
    for step in range(5):
        values = {"train_closs": 1 / (step + 3), "train_acc_action_9": 0.1 * step, "speed_of": 1e308}
        run.append(Kind.METRICS, values, step=step)
    run.append(Kind.METRICS, {"train_closs": math.nan, "train_grad_norm": math.inf}, step=5)
    (run.dir / "spec.yaml").write_text(dump_spec(spec))
    (run.dir / "manifest.json").write_text(json.dumps({"format": 2, "vlatrack": "0.1.0", "packages": {"numpy": "2"}}))
    for file in files:
        run.append(Kind.ARTIFACT, artifact_data(run.dir / file, run.dir, name=file, aliases=(), sha256=None))
    run.finish("FINISHED")
    return run


def delivered(runs: Path, *files: str) -> tuple[Path, str]:
    """A run directory whose records MLflow has, and the id of the run there."""
    run = example_run(runs.parent, *files)
    deliver(run.dir, BackendConfig("mlflow"))
    (stored,) = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}").search_runs(["1"])
    return run.dir, stored.info.run_id


def test_a_run_that_mlflow_has_is_the_run_itself(runs: Path) -> None:
    run_dir, run_id = delivered(runs, "spec.yaml", "manifest.json")
    with run_folder(f"mlflow:{run_id}", runs) as folder:
        assert not folder.is_relative_to(runs)
        assert folder.stat().st_mode & 0o077 == 0
        restored, original = RecordedRun.read(folder), RecordedRun.read(run_dir)
        histories = [sorted(metric_history(place / "journal.jsonl").items()) for place in (folder, run_dir)]
    assert str(histories[0]) == str(histories[1]), "as text, since NaN is not NaN"
    assert not folder.exists()
    assert (restored.settings, restored.manifest) == (original.settings, original.manifest)
    assert original.tags.items() <= restored.tags.items(), "also what MLflow does not show"
    assert (restored.experiment, restored.status.status) == ("contract", "FINISHED")
    found = compare_runs(run_dir, f"mlflow:{run_id}", runs_folder=runs)
    assert (found.settings, found.data, found.code) == ((), (), ())
    assert all(str(row.values[0]) == str(row.values[1]) for row in found.metrics)


def test_what_is_no_run_of_vlatrack_or_not_there_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_id = delivered(runs, "spec.yaml")
    bad = {
        f"mlflow:{run_id}": "MLflow has no manifest.json of it",
        "mlflow:" + "a" * 32: r"has no such run, or does not answer \(Run with id=a{32} not found\)",
        "mlflow:../../etc": "expected mlflow: and the id of a run",
    }
    for word, told in bad.items():
        with pytest.raises(VlatrackError, match=told) as caught, run_folder(word, runs):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(VlatrackError, match="set MLFLOW_TRACKING_URI"), run_folder(f"mlflow:{run_id}", runs / "none"):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    with pytest.raises(VlatrackError, match=r"manifest\.json"), run_folder(f"mlflow:{run_id}", runs / "none"):
        pass

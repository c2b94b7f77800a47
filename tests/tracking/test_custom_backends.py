"""Backends of others: found before the training, loaded by the delivery process."""

import csv
import sys
from pathlib import Path

import pytest

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.registry import backends_of, backends_text, check_backend
from vlatrack.tracking.run import BackendConfig, TrackedRun

MODULE = """
from vlatrack.testing.csv_backend import CsvBackend
class Mine(CsvBackend): ...
class Half:
    def open(self): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that only this process finds: its folder is on sys.path, not in the environment."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_tracker.py").write_text(MODULE)
    (tmp_path / "lib" / "my_broken_tracker.py").write_text("raise OSError('no\\nroute')\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.delitem(sys.modules, "my_tracker", raising=False)
    return "my_tracker"


@pytest.fixture
def installed(tmp_path: Path, module: str) -> str:
    """The name of an entry point of an installed package."""
    info = tmp_path / "lib" / "my_tracker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tracker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlatrack.backends]\nmine = my_tracker:Mine\n")
    return "mine"


def deliver(run_dir: Path, target: str) -> None:
    config = BackendConfig("custom", target=target, options={"folder": "table"})
    run = TrackedRun.start(run_dir, uid="u1", name="n", experiment="exp", backends=[config], params={}, tags={})
    for step in range(3):
        run.log({"train_closs": step / 2}, step=step)
    report = run.finish("FINISHED")
    assert report.complete, report
    assert report.backends[0].url == str(run_dir / "table")
    with (run_dir / "table" / "metrics.csv").open(newline="") as file:
        assert [(row[2], row[4]) for row in csv.reader(file)] == [("0", "0.0"), ("1", "0.5"), ("2", "1.0")]


def test_the_delivery_process_loads_a_class_that_the_training_process_finds(run_dir: Path, module: str) -> None:
    deliver(run_dir, f"{module}:Mine")


def test_a_package_offers_its_backend_by_an_entry_point(run_dir: Path, installed: str) -> None:
    deliver(run_dir, installed)


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("nowhere:Mine", {}, r"nowhere:Mine cannot be loaded \(ModuleNotFoundError: .*\); is its package installed"),
        ("my_tracker:Other", {}, "my_tracker:Other cannot be loaded"),
        ("my_broken_tracker:Mine", {}, r"my_broken_tracker:Mine cannot be loaded \(OSError: no route\)"),
        ("my_tracker:Half", {}, "my_tracker:Half lacks describe, deliver, put_artifact, alert, finish, audit, close"),
        ("my_tracker:Mine", {"colour": "red"}, "my_tracker:Mine: options: got an unexpected keyword argument 'colour'"),
        ("my_tracker:Mine", {"folder": "http://me:pw@host"}, "folder: holds a password"),
        ("yours", {}, r"no installed package offers a backend 'yours' \(entry points of vlatrack.backends: .*"),
        (None, {}, "a custom backend needs a target"),
    ],
)
def test_a_backend_that_cannot_be_used_is_one_line_before_anything_starts(
    run_dir: Path, installed: str, target: str | None, options: dict[str, str], told: str
) -> None:
    config = BackendConfig("custom", target=target, options=options)
    with pytest.raises(TrackerError, match=told) as error:
        TrackedRun.start(run_dir, uid="u1", name="n", experiment="exp", backends=[config], params={}, tags={})
    assert "\n" not in str(error.value)
    assert not run_dir.exists()


def test_settings_survive_the_way_to_the_delivery_process() -> None:
    configs = [BackendConfig("mlflow"), BackendConfig("custom", "sections", {"n": 3, "deep": None}, "a.b:C")]
    assert backends_of(backends_text(configs)) == configs
    check_backend(BackendConfig("tensorboard"))

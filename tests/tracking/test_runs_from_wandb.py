"""Runs that only W&B, or its double, has: compared and read as if their directory were here."""

import json
from pathlib import Path

import pytest
from test_evaluations import deliver
from test_runs_from_mlflow import example_run
from wandb_double import ENTITY, WandbDouble

from vlatrack import compare_runs
from vlatrack.errors import VlatrackError
from vlatrack.runner.comparison.finding import run_folder
from vlatrack.runner.comparison.recorded import RecordedRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.run_files import RunFiles


def delivered(folder: Path, *files: str, **options: int) -> tuple[Path, str]:
    """A run directory whose records W&B has, and how the run is called there."""
    run = example_run(folder, *files)
    RunFiles(run.dir).health.write_text("{}")  # it was watched
    deliver(run.dir, BackendConfig("wandb", options={"project": "vla", **options}))
    return run.dir, f"wandb:{ENTITY}/vla/{run.uid}"


def test_a_run_that_wandb_has_is_the_run_itself(tmp_path: Path, wandb_server: WandbDouble) -> None:
    run_dir, word = delivered(tmp_path, "spec.yaml", "manifest.json")
    assert json.loads(wandb_server.runs["contract-run-1"].summary)["health/verdict"] == "healthy"
    address = f"{wandb_server.url}/{ENTITY}/vla/runs/{word.rpartition('/')[2]}/overview?nw=vlalosses"
    with run_folder(word, tmp_path) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        restored, original = RecordedRun.read(folder), RecordedRun.read(run_dir)
        histories = [sorted(metric_history(place / "journal.jsonl").items()) for place in (folder, run_dir)]
    assert str(histories[0]) == str(histories[1]), "as text, since NaN is not NaN"
    assert not folder.exists()
    assert (restored.settings, restored.manifest, restored.tags) == (
        original.settings,
        original.manifest,
        original.tags,
    )
    assert restored.status.status == "FINISHED"
    found = compare_runs(run_dir, address, runs_folder=tmp_path)
    assert (found.settings, found.data, found.code) == ((), (), ())
    assert all(str(row.values[0]) == str(row.values[1]) for row in found.metrics)


def test_what_is_no_run_of_vlatrack_or_not_there_is_one_line(
    tmp_path: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, word = delivered(tmp_path, "spec.yaml")

    def refused(word: str, told: str) -> None:
        with pytest.raises(VlatrackError, match=told) as caught, run_folder(word, tmp_path):
            pass
        assert "\n" not in str(caught.value)

    refused(word, r"W&B has no manifest.json of it")
    _, referring = delivered(tmp_path / "other", "spec.yaml", "manifest.json", copy_up_to_mb=0)
    refused(referring, r"W&B has no copy of spec.yaml, but where it is")
    refused(f"wandb:{ENTITY}/vla/other", "has no such run, or not one that this key may see")
    refused("wandb:../../etc", "expected wandb:ENTITY/PROJECT/RUN_ID")
    refused("https://wandb.ai/a/b/runs/c", "set WANDB_BASE_URL=https://wandb.ai")
    monkeypatch.delenv("WANDB_API_KEY")
    refused(word, "no W&B key for http://127.0.0.1")

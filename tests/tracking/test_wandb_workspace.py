"""`vlatrack dashboard wandb` makes one view of a project, and makes it once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb_double import ENTITY, WANDB_KEY, StoredRun, WandbDouble

from vlatrack.cli.main import main
from vlatrack.metrics.grouping import documented_name
from vlatrack.metrics.schema import MetricSchema
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.backends.wandb.workspace import ViewOptions, view_of
from vlatrack.tracking.privacy import write_private
from vlatrack.tracking.run_files import RunFiles

Said = tuple[int, str, str]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; its exit code, what it prints, and what it says of errors."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["vlatrack", "dashboard", "wandb", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert WANDB_KEY not in out + err
        return int(ended.value.code or 0), out, err

    return run


def a_run(folder: Path, **options: str) -> Path:
    """The directory of a run with chunks of twelve steps that reports to W&B."""
    run = ExampleRun(folder)
    run.start(**{"action_head.time_horizon": 12})
    naming = options.pop("naming", "documented")
    write_private(RunFiles(run.dir).backends, backends_text([BackendConfig("wandb", naming, options)]))
    return run.dir


def charts(view: dict[str, Any]) -> dict[str, list[list[str]]]:
    """What each section's charts show."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {
        section["name"]: [panel["config"]["metrics"] or [panel["config"]["metricRegex"]] for panel in section["panels"]]
        for section in sections
    }


def test_the_documented_losses_stand_first_and_every_metric_is_a_declared_one() -> None:
    shown = charts(view_of(ViewOptions("vla")))
    assert next(iter(shown)) == "VLA losses"
    assert shown["VLA losses"] == [["train_closs"], ["train_loss_ct"], ["train_z_loss"], ["train_loss"]]
    l1 = [[f"{split}_l1_loss_action_{x}" for x in range(9, -1, -1)] for split in ("train", "val_ind", "val_ood")]
    assert shown["L1 of each chunk step"][:3] == l1
    schema = MetricSchema.for_experiment(horizon=10, action_dim=1)
    names = [documented_name(key) for section in shown.values() for keys in section for key in keys if key[0] != "^"]
    assert len(names) > 80
    assert set(names) <= set(schema.names())


def test_the_librarys_own_loader_reads_the_view_and_writes_the_same() -> None:
    from wandb_workspaces.workspaces import Workspace  # its import warns, unless it is imported by what uses it
    from wandb_workspaces.workspaces.internal import View

    view = view_of(ViewOptions("vla", "me", is_grouped=True))
    assert view == view_of(ViewOptions("vla", "me", is_grouped=True)), "nothing in it is by chance"
    loaded = Workspace._from_model(View.model_validate({**view, "id": "v1"}))
    again = loaded._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    assert again == {**view, "id": "v1"}
    assert [loaded.settings.x_axis, loaded.sections[0].pinned] == ["train_step", True]
    assert loaded.runset_settings.pinned_columns[:4] == [
        *("run:displayName", "run:state", "run:group", "summary:health/verdict")
    ]


def test_the_view_of_a_runs_project_is_made_once_and_then_written_anew(
    dashboard: Any, tmp_path: Path, wandb_server: WandbDouble
) -> None:
    wandb_server.runs["r"] = StoredRun("r", "vla")
    run = a_run(tmp_path, project="vla", naming="sections")
    address = f"{wandb_server.url}/{ENTITY}/vla?nw=vlalosses"
    assert dashboard(str(run)) == (0, f"VLA losses of {ENTITY}/vla made: {address}\n", "")
    first = dict(wandb_server.views)
    code, out, _ = dashboard(str(run), "--json")
    told = json.loads(out)
    assert (code, told["saved"], told["url"]) == (0, True, address)
    assert wandb_server.views == {place: {**view, "id": "view-0"} for place, view in first.items()}
    ((place, stored),) = wandb_server.views.items()
    assert (place, stored["displayName"]) == (("vla", "nw-vlalosses-v"), "VLA losses")
    assert json.loads(stored["spec"]) == told["view"]["spec"]
    shown = charts(told["view"])
    assert shown["VLA losses"][0] == ["train/closs"]
    assert shown["L1 of each chunk step"][0][0] == "train/l1_loss_action_11"
    assert "written anew" in dashboard("--project", "vla", "--entity", ENTITY)[1]


def test_what_cannot_be_is_one_line_and_keys_are_in_none(
    dashboard: Any, tmp_path: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        code, out, err = dashboard(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return str(err)

    assert f"{ENTITY}/other: no such project, or not one that this key may see" in refused("--project", "other")
    wandb_server.runs["r"] = StoredRun("r", "vla")
    wandb_server.refuse_views = f"permission denied for {WANDB_KEY}"
    assert f"W&B at {wandb_server.url} does not take the view (permission denied" in refused("--project", "vla")
    elsewhere = ExampleRun(tmp_path).dir
    assert "does not report to W&B" in refused(str(elsewhere))
    write_private(
        RunFiles(elsewhere).backends,
        backends_text([BackendConfig("wandb", started_with={"base_url": "https://wandb.lab", "mode": "online"})]),
    )
    with monkeypatch.context() as without:
        without.delenv("WANDB_BASE_URL")
        assert "is at https://wandb.lab; set WANDB_BASE_URL=https://wandb.lab" in refused(str(elsewhere))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key must have 40+ characters" in refused("--project", "vla")
    monkeypatch.delenv("WANDB_API_KEY")
    assert "set WANDB_API_KEY, or call `wandb login`" in refused("--project", "vla")
    code, out, err = dashboard("--project", "vla", "--dry-run")
    assert (code, err, out.splitlines()[0]) == (0, "", "VLA losses for your default entity/vla, not saved:")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "pip install 'vlatrack[wandb]'" in refused("--project", "vla", "--dry-run")

"""Each experiment in MLflow has the saved view "VLA losses", which belongs to a person who has changed it."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from vlatrack.metrics.grouping import grouped
from vlatrack.tracking.backends.base import RunStart
from vlatrack.tracking.backends.mlflow.views import put_view

TAG = "mlflow.sharedViewState.vla-losses"


@pytest.fixture
def client(stored_run_dir: Path) -> MlflowClient:
    client = MlflowClient(f"sqlite:///{stored_run_dir.parents[1] / 'mlflow.db'}")
    client.create_experiment("exp")
    return client


def put(client: MlflowClient, overrides: str) -> dict[str, Any]:
    """The state of the page after a run with these overrides."""
    params = {"loss.loss_ct_weights": 1.0, "seed": 2, "optim.lr": 1e-4}
    start = RunStart("u1", "n", "exp", params, {"vlatrack.overrides": overrides}, 0)
    assert put_view(client, "1", start, grouped) == []
    view = json.loads(client.get_experiment("1").tags[TAG])
    assert (view["name"], view["state"][:8]) == ("VLA losses", "deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(view["state"][8:])))
    return state


def test_the_documented_losses_stand_first_and_the_rest_of_a_chart_has_none_of_its_own(client: MlflowClient) -> None:
    state = put(client, "")
    shown = [chart["selectedMetricKeys"] for chart in state["compareRunCharts"] if not chart["deleted"]]
    assert shown[:4] == [["train_closs"], ["train_loss_ct"], ["train_z_loss"], ["train_loss"]]
    assert [keys[:5] for keys in shown[4:7]] == [
        [f"{split}_l1_loss_action_{x}" for x in (9, 8, 7, 6, 5)] for split in ("train", "val_ind", "val_ood")
    ]
    charted = [chart["metricKey"] for chart in state["compareRunCharts"]]
    assert len(charted) == len(set(charted)), "else MLflow shows one twice"
    assert set(charted) == {key for keys in shown for key in keys}
    assert state["compareRunSections"][0]["uuid"] == state["compareRunCharts"][0]["metricSectionId"]


def test_the_columns_are_what_the_runs_changed_until_a_person_edits_the_view(client: MlflowClient) -> None:
    put(client, "seed=2")
    columns = put(client, "loss.loss_ct_weights=1 seed=3 tracking.log_every=1")["selectedColumns"]
    assert columns[0] == "metrics.`train_closs`"
    assert columns[-2:] == ["params.`seed`", "params.`loss.loss_ct_weights`"]
    before = client.get_experiment("1").tags
    put(client, "seed=4")
    assert client.get_experiment("1").tags == before, "nothing new"
    edited = json.loads(before[TAG]) | {"updatedAt": 1}
    client.set_experiment_tag("1", TAG, json.dumps(edited))
    assert put(client, "optim.lr=1")["selectedColumns"] == columns
    client.delete_experiment_tag("1", TAG)
    assert put(client, "optim.lr=1")["selectedColumns"][-1] == "params.`optim.lr`"

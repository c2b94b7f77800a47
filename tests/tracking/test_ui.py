import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from browser import browser_page
from launching import running
from mlflow.tracking import MlflowClient
from test_evaluations import deliver

from vlatrack.cli.ui import ui
from vlatrack.errors import TrackerError
from vlatrack.reports.dashboard import server
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.mlflow.server import newest_experiments


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


def test_a_missing_store_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match=r"mlflow\.db: no such store"):
        ui(runs=tmp_path, mlflow=True)


def test_the_ui_names_the_experiments_that_have_runs_the_newest_first(stored_run_dir: Path) -> None:
    store = stored_run_dir.parent.parent / "mlflow.db"
    client = MlflowClient(f"sqlite:///{store}")
    for number, name in enumerate(["first", "second", "empty"]):
        experiment = client.create_experiment(name)
        if name != "empty":
            client.create_run(experiment, start_time=1000 + number)
    assert [name for _, name in newest_experiments(store)] == ["second", "first"]
    (stored_run_dir / "other.db").touch()
    assert newest_experiments(stored_run_dir / "other.db") == []


@pytest.mark.slow
def test_the_ui_serves_the_store_on_a_free_port_and_leaves_no_process_behind(
    stored_run_dir: Path, eventually: Callable[..., None]
) -> None:
    runs = stored_run_dir.parent.parent
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-c", "import typer; from vlatrack.cli.ui import ui; typer.run(ui)"]
        wanted = ["--mlflow", "--runs", runs, "--port", str(taken.getsockname()[1])]
        with running([*command, *wanted], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as shown:
            assert shown.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+", shown.stdout.readline())
            assert found is not None
            url = found[0]
            assert not url.endswith(wanted[-1])
            eventually(lambda: _answers(url))
            with urllib.request.urlopen(f"{url}/api/2.0/mlflow/experiments/search?max_results=5") as response:
                assert [e["name"] for e in json.load(response)["experiments"]] == ["Default"]
            servers = psutil.Process(shown.pid).children(recursive=True)
            assert 1 <= len(servers) <= 3
            shown.terminate()
            assert shown.wait(60) == 0
    assert psutil.wait_procs(servers, timeout=10)[1] == []
    assert not _answers(url)


@pytest.mark.slow
def test_the_printed_addresses_lead_to_the_charts_of_the_saved_view_in_training_mode(
    stored_run_dir: Path, eventually: Callable[..., None]
) -> None:
    run = ExampleRun(stored_run_dir.parents[2])
    run.log(3)
    run.finish("FINISHED")
    deliver(run.dir, BackendConfig("mlflow"))
    command = [sys.executable, "-m", "vlatrack", "ui", "--mlflow", "--runs", stored_run_dir.parents[1], "--port", "0"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as shown:
        assert shown.stdout is not None
        list_of_all, charts = (shown.stdout.readline() for _ in range(2))
        assert re.search(r"http\S+/#/experiments\?workflowType=machine_learning\b", list_of_all)
        name, address = charts.split(maxsplit=1)
        server, _, page = address.strip().partition("/#")
        place, asked = urlsplit(page).path, {key: value for key, (value,) in parse_qs(urlsplit(page).query).items()}
        eventually(lambda: _answers(server))
        number = re.fullmatch(r"/experiments/(\d+)/runs", place)
        assert number is not None
        with urllib.request.urlopen(f"{server}/api/2.0/mlflow/experiments/get?experiment_id={number[1]}") as response:
            experiment = json.load(response)["experiment"]
        tags = {tag["key"]: tag["value"] for tag in experiment["tags"]}
        assert name == f"{experiment['name']}:" == "contract:"
        assert (asked["workflowType"], asked["compareRunsMode"]) == ("machine_learning", "CHART")
        assert json.loads(tags[f"mlflow.sharedViewState.{asked['viewStateShareKey']}"])["name"] == "VLA losses"
        with browser_page() as tab:
            tab.look(width=1440)
            tab.open(address.strip())
            shown_first = "/VLA losses[^]*train_closs[^]*train_loss_ct/.exec(document.body.innerText)"
            assert tab.wait_for(shown_first, timeout_s=60)


@pytest.mark.parametrize(
    ("given", "shown"), [("my-own-secret-token", r"\?token=\$VLATRACK_TOKEN "), (None, r"\?token=[\w-]{32} ")]
)
def test_a_token_is_printed_only_if_it_is_not_yours(
    given: str | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLATRACK_TOKEN", raising=False)
    if given is not None:
        monkeypatch.setenv("VLATRACK_TOKEN", given)
    tokens: list[str] = []
    monkeypatch.setattr(server, "serve", lambda *_, token, **__: tokens.append(token))
    ui(tmp_path, host="0.0.0.0", port=0, mlflow=False)
    told = capsys.readouterr().out
    assert re.search(shown, told)
    assert (tokens[0] in told) == (given is None)

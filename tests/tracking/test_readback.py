"""What an MLflow server acknowledged is read back before it counts as delivered."""

from dataclasses import replace
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy
from happens import happens
from mlflow_server import MlflowServer

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import Backend, BackendConfig, ListsValues, RunFinish
from vlatrack.tracking.backends.registry import connect

SWALLOWED = Fault("status", status=200, text="{}")


def opened(run: ExampleRun, url: str) -> Backend:
    backend = connect(BackendConfig("mlflow", options={"tracking_uri": url}), run.dir)
    backend.open(run.start_value(), -1)
    return backend


@happens(
    "server",
    "a proxy answers {} to metrics, and nothing is stored",
    "delivery reads back a sample, says that the server does not hold what it acknowledged, and tries again",
)
def test_values_that_were_acknowledged_and_not_stored_are_not_delivered(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    run = ExampleRun(tmp_path, uid="swallowed")
    run.log(30)
    with FaultProxy(mlflow_server.url) as proxy:
        backend = opened(run, proxy.url)
        proxy.choose = lambda method, path: SWALLOWED if path.endswith("log-batch") else None
        with pytest.raises(ConnectionError, match="acknowledged 60 values but does not hold train_closs of step 29"):
            backend.deliver(run.metrics())
        proxy.choose = lambda method, path: None
        assert backend.deliver(run.metrics()) == []
        before = proxy.counts["passed"]
        backend.deliver(run.metrics())
        assert proxy.counts["passed"] == before + 2, "the batch, and one question"


def test_each_request_of_a_long_delivery_is_read_back(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    run = ExampleRun(tmp_path, uid="swallowed-in-part")
    run.log(700)  # 1400 values, of which a request has a thousand
    with FaultProxy(mlflow_server.url) as proxy:
        backend = opened(run, proxy.url)
        faults = iter([SWALLOWED])
        proxy.choose = lambda method, path: next(faults, None) if path.endswith("log-batch") else None
        with pytest.raises(ConnectionError, match="acknowledged 1000 values but does not hold train_closs of step 499"):
            backend.deliver(run.metrics())
        assert backend.deliver(run.metrics()) == []
        assert isinstance(backend, ListsValues)
        assert sum(1 for _ in backend.values(run.start_value())) == 1400


@happens(
    "server",
    "a proxy answers {} to params, tags or the end of a run, and nothing is stored",
    "delivery reads them back, says that the server does not hold what it acknowledged, and tells them again",
)
def test_params_tags_and_an_end_that_were_acknowledged_and_not_stored_are_not_delivered(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    run = ExampleRun(tmp_path, uid="swallowed-words")
    with FaultProxy(mlflow_server.url) as proxy:
        backend = opened(run, proxy.url)
        proxy.choose = lambda method, path: SWALLOWED if path.endswith(("log-batch", "runs/update")) else None
        with pytest.raises(ConnectionError, match=r"acknowledged 2 params but does not hold param epochs"):
            backend.describe(replace(run.start_value(), params={"epochs": 1, "seed": 2}))
        with pytest.raises(ConnectionError, match=r"acknowledged 1 tags but does not hold tag colour"):
            backend.describe(replace(run.start_value(), params={}, tags={"colour": "red"}))
        with pytest.raises(ConnectionError, match="acknowledged the end of the run but does not hold FINISHED"):
            backend.finish(RunFinish("FINISHED", None, 2))
        proxy.choose = lambda method, path: None
        assert backend.describe(run.start_value()) == []
        backend.finish(RunFinish("FINISHED", None, 2))
        assert backend.audit(run.start_value()).status == "FINISHED"


def test_a_batch_behind_the_latest_step_is_looked_for_in_the_history(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    run = ExampleRun(tmp_path, uid="swallowed-after-a-rewind")
    run.log(30)
    with FaultProxy(mlflow_server.url) as proxy:
        backend = opened(run, proxy.url)
        backend.deliver(run.metrics())
        run.log(5, first_step=10)
        proxy.choose = lambda method, path: SWALLOWED if path.endswith("log-batch") else None
        with pytest.raises(ConnectionError, match="does not hold train_loss_ct of step 14"):
            backend.deliver(run.metrics()[30:])
        proxy.choose = lambda method, path: None
        assert backend.deliver(run.metrics()[30:]) == []
        absent = Fault("status", status=404, text="not found")
        proxy.choose = lambda method, path: absent if "bulk-interval" in path else None
        assert backend.deliver(run.metrics()[30:]) == [], "an older server has no such list"

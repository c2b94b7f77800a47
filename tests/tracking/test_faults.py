"""Delivery to a real MLflow server while the way to it fails in every manner."""

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fault_proxy import Fault, FaultProxy
from happens import happens
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery import backoff
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.privacy import private_directory
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

pytestmark = pytest.mark.slow

FAULTS = {
    "refuse": Fault("refuse"),
    "hang": Fault("hang", seconds=0.2),
    "cut": Fault("cut"),
    "slow": Fault("slow", seconds=0.2),
    **{str(status): Fault("status", status) for status in (401, 403, 404, 429, 500)},
}
STEPS = 600


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.url) as proxy:
        yield proxy


def write_run(run_dir: Path, uid: str) -> RunFiles:
    files = RunFiles(run_dir)
    private_directory(files.delivery)
    journal = Journal.open(files.journal, run=uid, writer="trainer")
    journal.append(Kind.START, {"name": uid, "experiment": "faults", "params": {"lr": 0.1}, "tags": {}})
    for step in range(STEPS):
        journal.append(Kind.METRICS, {"train_closs": step / 3, "train_z_loss": -step / 7}, step=step)
    journal.append(Kind.FINISH, {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
    journal.close()
    return files


def rows_at(server: MlflowServer, uid: str) -> tuple[Counter[tuple[str, int, int, float]], list[str]]:
    """(key, timestamp, step, value) with their number, and the statuses of all runs with this uid."""
    client = MlflowClient(server.url)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`vlatrack.uid` = '{uid}'")
    histories = [client.get_metric_history(run.info.run_id, key) for run in runs for key in run.data.metrics]
    return Counter((m.key, m.timestamp, m.step, m.value) for h in histories for m in h), [r.info.status for r in runs]


@happens(
    "server",
    "requests are refused, hang, are cut, come late, or get 401, 403, 404, 429 or 500",
    "delivery tries again, with pauses of up to 30 s; nothing is lost or stored twice",
)
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_or_doubled_while_the_way_to_the_server_fails(
    run_dir: Path, mlflow_server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    files = write_run(run_dir, f"run-{name}")
    rng = random.Random(name)
    proxy.script.extend(FAULTS[name] if rng.random() < 0.4 else None for _ in range(15))
    mlflow = BackendConfig("mlflow", options={"tracking_uri": proxy.url})
    delivery = Tail(run_dir, "mlflow-0", partial(connect, mlflow, run_dir), threading.Event())
    delivery.run()
    assert delivery.finished
    assert proxy.counts[FAULTS[name].kind] > 2
    journal = [record for record in read_records(files.journal) if record.kind == Kind.METRICS]
    expected = Counter((key, r.t_ms, r.step or 0, value) for r in journal for key, value in r.data.items())
    assert rows_at(mlflow_server, f"run-{name}") == (expected, ["FINISHED"])
    cursor = CursorFile(files.delivery, "mlflow-0").read()
    assert (cursor.seq, cursor.error, cursor.dead_letters) == (STEPS + 1, None, 0)


@happens(
    "process", "the delivery process is killed", "another takes over where the trackers are; none has a second run"
)
def test_a_delivery_killed_before_it_knows_the_run_that_it_made_makes_no_second_one(
    run_dir: Path, mlflow_server: MlflowServer, proxy: FaultProxy
) -> None:
    kills: list[int] = []

    def kill_once(path: str, body: bytes) -> None:
        if path.endswith("/runs/create") and not kills:
            kills.append(int(RunFiles(run_dir).delivery_lock.read_text()))
            os.kill(kills[0], signal.SIGKILL)

    proxy.answered = kill_once
    mlflow = BackendConfig("mlflow", options={"tracking_uri": proxy.url})
    run = TrackedRun.start(run_dir, uid="killed", name="n", experiment="faults", backends=[mlflow], params={}, tags={})
    run.log({"train_closs": 0.5}, step=1)
    assert run.finish("FINISHED").complete
    assert len(kills) == 1
    (_, record, _) = read_records(run_dir / "journal.jsonl")
    assert rows_at(mlflow_server, "killed") == (Counter([("train_closs", record.t_ms, 1, 0.5)]), ["FINISHED"])


FAILURES = {
    "401": Fault("status", 401),
    "403": Fault("status", 403),
    "404": Fault("status", 404),
    "cut": Fault("cut"),
    "403 of MLflow": Fault("status", 403, text='{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_once_at_each_address_is_neither_buried_nor_stored_twice(
    run_dir: Path, mlflow_server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.02)
    asked: Counter[tuple[str, str]] = Counter()

    def fail_once(method: str, path: str) -> Fault | None:
        """Each address, so that every kind of record meets it."""
        asked[method, path.partition("?")[0]] += 1
        return FAILURES[name] if asked[method, path.partition("?")[0]] == 1 else None

    uid = f"failed-{name.replace(' ', '-')}"
    (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (run_dir / "checkpoints" / "step-1" / "w.bin").write_bytes(b"weights")
    run = TrackedRun.start(run_dir, uid=uid, name=uid, experiment="faults", backends=[], params={"lr": 1}, tags={})
    run.log({"train_closs": 0.5}, step=1)
    run.event("checkpoint", {"step": 1, "epoch": 1, "name": "step-1"})
    run.log_artifact(run_dir / "checkpoints", name="checkpoints/step-1")
    run.event("health", {}, alert=True)
    run.finish("FINISHED")
    proxy.choose = fail_once
    mlflow = BackendConfig("mlflow", options={"tracking_uri": proxy.url, "copy_checkpoints": True})
    delivery = Tail(run_dir, "mlflow-0", partial(connect, mlflow, run_dir), threading.Event())
    delivery.run()
    cursor = CursorFile(RunFiles(run_dir).delivery, "mlflow-0").read()
    assert (cursor.seq, cursor.error, cursor.dead_letters) == (5, None, 0)
    assert {method for method, _ in asked} == {"GET", "POST", "PUT", "PATCH"}
    rows, statuses = rows_at(mlflow_server, uid)
    assert (rows.total(), statuses) == (1, ["FINISHED"])
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("faults")
    models = client.search_logged_models([experiment.experiment_id], f"tags.`vlatrack.checkpoint` = '{uid}:2'")
    assert [model.name for model in models] == ["step-1"]

"""The whole way with real processes: journal, delivery process, MLflow on SQLite, wandb against a local double."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fault_proxy import Fault, FaultProxy
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from wandb_double import WandbDouble
from wandb_file import offline_exit_code

from vlatrack.metrics.grouping import documented_name
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import RunFinish, Status
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.backends.wandb.clients import closed, end_idle_client, own_clients
from vlatrack.tracking.delivery.audit import audit_run, journal_audit
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.history import metric_history, run_status
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run import BackendConfig, TrackedRun
from vlatrack.tracking.run_files import RunFiles

Eventually = Callable[..., None]
MLFLOW, WANDB = BackendConfig("mlflow"), BackendConfig("wandb", naming="sections")
OFFLINE = BackendConfig("wandb", options={"mode": "offline"})
CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")
KEY = "planted0123456789abcdef0123456789abcdef01234"


def start(run_dir: Path, *backends: BackendConfig, resume: bool = False, **params: str | float) -> TrackedRun:
    return TrackedRun.start(
        run_dir,
        uid="u1",
        name="a run",
        experiment="exp",
        backends=backends,
        params=params,
        tags={"vlatrack.commit": "abc"},
        resume=resume,
    )


def client(run_dir: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{run_dir.parent.parent / 'mlflow.db'}")


def mlflow_run(run_dir: Path) -> MlflowRun:
    store = client(run_dir)
    (found,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    return found


def mlflow_rows(run_dir: Path) -> list[tuple[str, int, int, float]]:
    """(key, timestamp, step, value) of everything in the store."""
    run = mlflow_run(run_dir)
    histories = [client(run_dir).get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return sorted((documented_name(m.key), m.timestamp, m.step, m.value) for history in histories for m in history)


def mlflow_has(run_dir: Path, key: str) -> bool:
    store = client(run_dir)
    found = store.search_runs([e.experiment_id for e in store.search_experiments()])
    return any(key in run.data.metrics for run in found)


def journal_rows(run_dir: Path) -> list[tuple[str, int, int, float]]:
    metrics = [record for record in read_records(run_dir / "journal.jsonl") if record.kind == "metrics"]
    return sorted((name, r.t_ms, r.step or 0, value) for r in metrics for name, value in r.data.items())


def wandb_rows(server: WandbDouble, uid: str = "u1") -> list[tuple[str, int, int, float]]:
    rows = [
        (documented_name(name), round(row["_timestamp"] * 1000), row["train_step"], value)
        for row in server.runs[uid].rows
        for name, value in row.items()
        if name != "train_step" and not name.startswith("_")
    ]
    return sorted(rows)


def delivery_process(run_dir: Path) -> int:
    return int((run_dir / "delivery" / "deliver.lock").read_text())


def delivery_ended(run_dir: Path) -> bool:
    if not (run_dir / "delivery" / "deliver.lock").exists():
        return False  # the process has just been started
    with (run_dir / "delivery" / "deliver.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_mlflow_and_wandb_hold_the_same_run(
    stored_run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = start(stored_run_dir, MLFLOW, WANDB, lr=1e-4, text="x" * 20_000, key=f"k={KEY}")
    (stored_run_dir / "spec.yaml").write_text("a: 1\n")
    (stored_run_dir / "checkpoints" / "epoch-1").mkdir(parents=True)
    (stored_run_dir / "checkpoints" / "epoch-1" / "m.bin").write_bytes(b"weights")
    (stored_run_dir / "tokenizer").mkdir()
    (stored_run_dir / "tokenizer" / "codes.bin").write_bytes(b"codes")
    run.log_artifact(stored_run_dir / "spec.yaml", name="spec.yaml")
    run.log_artifact(stored_run_dir / "tokenizer", name="tokenizer")
    for step in range(300):
        run.log({f"train_l1_loss_action_{x}": step + x / 7 for x in range(5, 10)}, step=step)
    run.log_artifact(stored_run_dir / "checkpoints" / "epoch-1", name="checkpoints/epoch-1")
    run.event("health", {"reason": f"bad {KEY}"}, alert=True)
    report = run.finish("FINISHED")

    assert report.complete, report
    assert mlflow_rows(stored_run_dir) == journal_rows(stored_run_dir) == wandb_rows(wandb_server)
    assert len(journal_rows(stored_run_dir)) == 1500
    stored = mlflow_run(stored_run_dir)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "a run")
    assert (stored.data.params["lr"], len(stored.data.params["text"])) == ("0.0001", 6000)
    assert stored.data.tags["vlatrack.truncated_params"].endswith("text")
    assert stored.data.tags["mlflow.vlatrack.commit"] == "abc"
    assert "vlatrack.commit" not in stored.data.tags, "a digest, which MLflow's overview is not to show"
    uploaded = Path(stored.info.artifact_uri.removeprefix("file://"))
    assert uploaded.is_relative_to(stored_run_dir.parent.parent / "mlartifacts")
    assert (uploaded / "spec.yaml").read_text() == "a: 1\n"
    assert (uploaded / "tokenizer" / "codes.bin").read_bytes() == b"codes"
    at_wandb = wandb_server.runs["u1"]
    assert (at_wandb.state, at_wandb.display_name, at_wandb.tags) == ("finished", "a run", [])
    config = json.loads(at_wandb.config)
    assert config["tags"]["value"] == {"vlatrack.commit": "abc"}
    assert (config["lr"]["value"], config["text"]["value"]) == (1e-4, "x" * 20_000)
    assert all(row["_step"] > 0 and "train/l1_loss_action_5" in row for row in at_wandb.rows)
    assert b"codes" in wandb_server.uploads.values()
    assert [alert["title"] for alert in wandb_server.alerts] == ["health"]
    for file in stored_run_dir.parent.parent.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in json.dumps([at_wandb.config, at_wandb.summary, wandb_server.alerts])


def test_a_killed_trainer_leaves_a_run_that_is_killed_everywhere_and_can_go_on(
    stored_run_dir: Path, wandb_server: WandbDouble, eventually: Eventually
) -> None:
    backends = json.dumps([{"kind": "mlflow"}, {"kind": "wandb", "naming": "sections"}])
    command = [sys.executable, Path(__file__).with_name("endless_trainer.py"), stored_run_dir, backends]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"logging\n"
        finally:
            trainer.kill()
    eventually(lambda: delivery_ended(stored_run_dir))
    status = run_status(stored_run_dir)
    assert (status.status, status.reason) == ("KILLED", "the training process ended without saying why")
    assert (mlflow_run(stored_run_dir).info.status, wandb_server.runs["u1"].state) == ("KILLED", "killed")
    assert len(journal_rows(stored_run_dir)) > 50
    assert mlflow_rows(stored_run_dir) == journal_rows(stored_run_dir) == wandb_rows(wandb_server)

    run = start(stored_run_dir, MLFLOW, WANDB, resume=True, epochs=2)
    for step in range(10, 100):  # from a checkpoint before the last logged step
        run.log({"train_closs": -float(step)}, step=step)
    assert run.finish("FINISHED").complete
    stored = mlflow_run(stored_run_dir)
    assert (stored.info.status, wandb_server.runs["u1"].state) == ("FINISHED", "finished")
    assert (stored.data.params["epochs"], stored.data.tags["vlatrack.changed.epochs"]) == ("1", "2")
    assert mlflow_rows(stored_run_dir) == journal_rows(stored_run_dir) == wandb_rows(wandb_server)
    assert metric_history(stored_run_dir / "journal.jsonl")["train_closs"][9:11] == [(9, 0.1), (10, -10.0)]


@pytest.mark.slow
def test_a_killed_delivery_process_goes_on_without_gaps_or_duplicates(
    stored_run_dir: Path, wandb_server: WandbDouble, eventually: Eventually
) -> None:
    run = start(stored_run_dir, MLFLOW, WANDB)
    cursor = CursorFile(stored_run_dir / "delivery", "mlflow-0")
    for step in range(1200):
        run.log({"train_closs": step / 3}, step=step)
    eventually(lambda: cursor.read().seq > 400 and "u1" in wandb_server.runs)
    os.kill(delivery_process(stored_run_dir), signal.SIGKILL)  # what wandb was given is not uploaded yet
    (stored_run_dir / "delivery" / "mlflow-0.json").unlink()  # a replay of everything, as if it was never written
    report = run.finish("FINISHED")
    assert report.complete, report
    assert mlflow_rows(stored_run_dir) == journal_rows(stored_run_dir)
    assert wandb_rows(wandb_server) == journal_rows(stored_run_dir)
    steps = Counter(row["_step"] for row in wandb_server.runs["u1"].rows)
    assert max(steps.values()) == 1


@pytest.mark.usefixtures("empty_store")  # MLflow is imported there, with its warnings
@pytest.mark.slow
def test_an_mlflow_store_whose_creation_was_cut_is_made_again(run_dir: Path, eventually: Eventually) -> None:
    run = start(run_dir, MLFLOW)
    run.log({"train_closs": 0.5}, step=1)

    def unfinished() -> list[Path]:
        return list(run_dir.parent.parent.glob(".mlflow.db.*.unfinished"))

    eventually(lambda: any(path.stat().st_size > 0 for path in unfinished()))
    os.kill(delivery_process(run_dir), signal.SIGKILL)
    assert run.finish("FINISHED").complete
    assert mlflow_rows(run_dir) == journal_rows(run_dir)
    assert not unfinished()


@pytest.mark.usefixtures("empty_store")
@pytest.mark.slow
def test_an_mlflow_store_that_could_not_be_created_is_created_by_the_same_process_later(run_dir: Path) -> None:
    """The disk is full, which a limit on the size of files stands for."""
    run_dir.mkdir(parents=True)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from vlatrack.tracking.backends.mlflow.store import create_store\n"
        "store, free = Path(sys.argv[1]), resource.RLIM_INFINITY\n"
        "for size in (20_000, 300_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, free))\n"
        "    try: create_store(store)\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (free, free)); create_store(store)"
    )
    store = run_dir.parent.parent / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert [path.name for path in store.parent.glob("*mlflow.db*")] == ["mlflow.db"]
    assert MlflowClient(f"sqlite:///{store}").search_experiments()


def test_a_delivery_process_that_dies_is_replaced_while_training_goes_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vlatrack.tracking.delivery.supervisor.WATCH_S", 0.02)
    run = start(run_dir, CSV)
    cursor = CursorFile(run_dir / "delivery", "custom-0")
    for step in range(3):
        run.log({"train_closs": step / 3}, step=step)
        eventually(lambda step=step: cursor.read().seq == step + 1)
        if step < 2:
            os.kill(delivery_process(run_dir), signal.SIGKILL)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "its delivery process is gone; another takes over"
    ] * 2
    assert run.finish("FINISHED").complete


@pytest.mark.slow
def test_wandb_goes_on_after_failed_openings_and_a_killed_client(
    run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    cursor = CursorFile(run_dir / "delivery", "wandb-0")
    with FaultProxy(wandb_server.url) as proxy:
        monkeypatch.setenv("WANDB_BASE_URL", proxy.url)
        proxy.fault = Fault("status", 401)
        run = start(run_dir, WANDB)
        log = RunFiles(run_dir).delivery_log
        eventually(lambda: log.read_text().count("; next attempt in") > 2)
        assert "a fault" in str(cursor.read().error)  # and not that the client keeps the id of the run to itself
        proxy.fault = None  # now the client's own process says that the id is in use
        for step in range(300):
            run.log({"train_closs": step / 3}, step=step)
        eventually(lambda: "u1" in wandb_server.runs and len(wandb_server.runs["u1"].rows) == 300)
        clients = psutil.Process(delivery_process(run_dir)).children(recursive=True)
        (core,) = [client for client in clients if client.name() == "wandb-core"]
        core.kill()
        report = run.finish("FINISHED")
    assert report.complete, report
    assert wandb_rows(wandb_server) == journal_rows(run_dir)


@pytest.mark.slow
def test_rows_that_wandb_refused_without_an_error_are_delivered_when_it_takes_them(
    run_dir: Path, wandb_server: WandbDouble, eventually: Eventually
) -> None:
    wandb_server.refuse_streams = True
    run = start(run_dir, WANDB)
    for step in range(50):
        run.log({"train_closs": float(step)}, step=step)
    eventually(lambda: wandb_server.refused > 0)
    wandb_server.refuse_streams = False
    report = run.finish("FAILED", reason="ValueError: x")
    assert report.complete, report
    assert wandb_rows(wandb_server) == journal_rows(run_dir)
    assert wandb_server.runs["u1"].state == "failed"


def test_without_a_key_wandb_writes_offline_files_and_says_so(
    run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    run = start(run_dir, WANDB)
    run.log({"train_closs": 0.5}, step=1)
    report = run.finish("FINISHED")
    assert run.notices == (
        "no W&B key: the run is written to offline files; with WANDB_API_KEY or after `wandb login`, "
        "`vlatrack sync RUN` brings it to W&B",
    )
    (file,) = (run_dir / "wandb").glob("offline-run-*/run-u1.wandb")
    assert b"train/closs" in file.read_bytes()
    assert report.backends[0].url == f"with a key: vlatrack sync {run_dir}"
    assert wandb_server.operations == Counter()


@pytest.mark.parametrize(("status", "exit_code"), [("FINISHED", 0), ("FAILED", 1), ("KILLED", 255)])
def test_an_offline_file_holds_the_end_of_the_run_when_delivery_has_told_it(
    tmp_path: Path, status: Status, exit_code: int
) -> None:
    run = ExampleRun(tmp_path, uid="u1")
    with contextlib.closing(connect(OFFLINE, run.dir)) as backend:
        backend.open(run.start_value(), -1)
        backend.finish(RunFinish(status, None, 2))
        (file,) = (run.dir / "wandb").glob("offline-run-*/run-u1.wandb")
        assert offline_exit_code(file) == exit_code


def test_the_offline_file_of_a_client_that_was_killed_is_not_taken_for_whole(tmp_path: Path) -> None:
    run = ExampleRun(tmp_path, uid="u1")
    backend = connect(OFFLINE, run.dir)
    backend.open(run.start_value(), -1)
    closed("u1")
    (core,) = own_clients()
    core.suspend()  # it takes the word that it is to end, and does nothing about it
    threading.Timer(1.0, core.kill).start()
    with pytest.raises(ConnectionError, match="exit code -9"):
        end_idle_client()


@pytest.mark.slow
def test_one_sync_with_a_key_brings_a_run_from_offline_files_to_wandb(
    run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    run = start(run_dir, WANDB)
    (run_dir / "note.txt").write_text("a note")
    run.log_artifact(run_dir / "note.txt", name="note.txt")
    for step in range(30):
        run.log({"train_closs": step / 3}, step=step)
    assert run.finish("FINISHED").complete
    assert sync_run(run_dir).complete  # still without a key: there is nothing to do
    (audit,) = audit_run(run_dir, ["wandb-0"])
    assert (audit.differences, audit.cannot_tell is None) == ((), False)
    assert wandb_server.operations == Counter()

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert sync_run(run_dir).complete
    assert wandb_rows(wandb_server) == journal_rows(run_dir)
    assert audit_run(run_dir, ["wandb-0"])[0].backend == journal_audit(run_dir)
    assert b"a note" in wandb_server.uploads.values()
    assert not list((run_dir / "wandb").glob("offline-run-*"))  # `wandb sync` would store everything twice

    monkeypatch.delenv("WANDB_API_KEY")
    assert sync_run(run_dir).complete
    assert not list((run_dir / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_a_server_that_hangs_delays_neither_the_other_backend_nor_the_end(
    stored_run_dir: Path, eventually: Eventually
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        address = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        run = start(stored_run_dir, BackendConfig("mlflow", options={"tracking_uri": address}), MLFLOW)
        run.log({"train_closs": 0.5}, step=1)
        eventually(lambda: mlflow_has(stored_run_dir, "train_closs"), 25)  # the client itself hangs for 30 s
        report = run.finish("FAILED", reason="ValueError: x", timeout_s=3)
    hung, alive = report.backends
    assert (alive.delivered, alive.undelivered, alive.error) == (3, 0, None)
    assert (hung.delivered, hung.undelivered) == (0, 3)
    assert not report.complete
    assert delivery_ended(stored_run_dir)
    stored = mlflow_run(stored_run_dir)
    assert (stored.info.status, stored.data.tags["vlatrack.reason"]) == ("FAILED", "ValueError: x")

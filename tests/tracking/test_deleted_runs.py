"""A person deletes a run, or its experiment, at the tracker: delivery waits, says why, and goes on when it is back."""

import contextlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from wandb_double import WandbDouble

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.mlflow.runs import runs_with_uid
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery import backoff
from vlatrack.tracking.delivery.cursor import Cursor, CursorFile
from vlatrack.tracking.delivery.tail import Tail
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.run_files import RunFiles

Eventually = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExampleRun:
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.2)
    return ExampleRun(tmp_path)


@contextlib.contextmanager
def delivering(run: ExampleRun, config: BackendConfig) -> Iterator[Callable[[], Cursor]]:
    """A delivery that goes on meanwhile, and ends with the run; gives the way to its cursor."""
    label, stopping = f"{config.kind}-0", threading.Event()
    delivery = Tail(run.dir, label, partial(connect, config, run.dir), stopping)
    thread = threading.Thread(target=delivery.run)
    thread.start()
    try:
        yield CursorFile(RunFiles(run.dir).delivery, label).read
        thread.join(60)
        assert delivery.finished
    finally:
        stopping.set()
        thread.join()


@pytest.mark.parametrize("what", ["run", "experiment"])
@pytest.mark.slow
def test_mlflow_gets_everything_after_a_deletion_in_the_middle_was_undone(
    run: ExampleRun, empty_store: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    store = run.dir.parent.parent / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    client, calls = MlflowClient(f"sqlite:///{store}"), Counter[str]()
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, *args: Any, **kwargs: Any) -> object:
        calls["metrics" if kwargs.get("metrics") else "others"] += 1
        return log_batch(self, *args, **kwargs)

    with delivering(run, BackendConfig("mlflow")) as cursor:
        run.log(50)
        eventually(lambda: cursor().seq == 50)
        (stored,) = runs_with_uid(client, "1", run.uid)
        if what == "run":
            client.delete_run(stored.info.run_id)
        else:
            client.delete_experiment("1")
        monkeypatch.setattr(MlflowClient, "log_batch", counted)
        run.log(300, first_step=50)
        eventually(lambda: "deleted" in str(cursor().error))
        named = f"run run-1 ({stored.info.run_id})" if what == "run" else "experiment contract"
        told = f"RemoteDeletedError: {named} was deleted in MLflow; restore it there and `vlatrack sync`"
        assert (cursor().error, cursor().seq, cursor().dead_letters) == (told, 50, 0)
        assert calls == {"metrics": 1}
        if what == "run":
            client.restore_run(stored.info.run_id)
        else:
            client.restore_experiment("1")
        run.finish("FINISHED")
    assert (cursor().seq, cursor().dead_letters, cursor().error) == (351, 0, None)
    (stored,) = client.search_runs(["1"])
    history = client.get_metric_history(stored.info.run_id, "train_closs")
    assert [metric.step for metric in history] == list(range(350))
    assert stored.info.status == "FINISHED"


def test_a_run_deleted_before_a_sync_gets_no_twin(run: ExampleRun, empty_store: Path, eventually: Eventually) -> None:
    store = run.dir.parent.parent / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    backend = connect(BackendConfig("mlflow"), run.dir)
    backend.open(run.start_value(), -1)
    client = MlflowClient(f"sqlite:///{store}")
    (stored,) = runs_with_uid(client, "1", run.uid)
    client.delete_run(stored.info.run_id)
    run.log(3)
    run.finish("FINISHED")
    with delivering(run, BackendConfig("mlflow")) as cursor:
        eventually(lambda: "restore it there" in str(cursor().error))
        assert client.search_runs(["1"]) == []
        client.restore_run(stored.info.run_id)
    assert [found.info.run_id for found in client.search_runs(["1"])] == [stored.info.run_id]


HASTY_DELIVERY = """
import sys
from pathlib import Path
from vlatrack.tracking.backends.wandb import backend
from vlatrack.tracking.delivery import worker
backend.RETRIES = 1  # the client asks again and again, for a minute
sys.exit(worker.main(Path(sys.argv[1]), patience_s=60))
"""


@pytest.mark.slow
def test_wandb_gets_everything_after_a_deletion_in_the_middle_was_undone(
    run: ExampleRun, wandb_server: WandbDouble, eventually: Eventually
) -> None:
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text([BackendConfig("wandb")]))
    cursor = CursorFile(files.delivery, "wandb-0").read
    with contextlib.closing(Journal.open(files.journal, run=run.uid, writer="trainer")) as journal:
        delivery = subprocess.Popen([sys.executable, "-c", HASTY_DELIVERY, run.dir])
        try:
            for step in range(50):
                journal.append(Kind.METRICS, {"train_closs": float(step)}, step=step)
            eventually(lambda: cursor().seq == 50)
            wandb_server.deleted.add(run.uid)
            for step in range(50, 150):
                journal.append(Kind.METRICS, {"train_closs": float(step)}, step=step)
            journal.append(Kind.FINISH, {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
            journal.close()  # the trackers are told of the end now
            eventually(lambda: "was deleted in W&B; undelete it there" in str(cursor().error))
            assert cursor().dead_letters == 0
            wandb_server.deleted.clear()
            assert delivery.wait(60) == 0
        finally:
            delivery.kill()
            delivery.wait()
    assert (cursor().seq, cursor().dead_letters, cursor().error) == (151, 0, None)
    assert [row["_step"] for row in wandb_server.runs[run.uid].rows] == list(range(1, 151))
    assert wandb_server.runs[run.uid].state == "finished"

"""Servers die, hang, refuse, answer wrongly, or are behind a proxy that does."""

import contextlib
import sqlite3
import time

from fault_proxy import Fault, FaultKind
from mlflow_server import wait_until
from scene import Moments, Strike
from storm_rig import StormRun


def server_killed(run: StormRun, at: Moments) -> None:
    at.pause(8)
    run.rig.mlflow.kill()
    at.pause(3)
    run.rig.mlflow.start()


def killed_after_the_remote_run_was_made(run: StormRun, at: Moments) -> None:
    """The server has made the run, the delivery process dies before the answer reaches it."""
    made = {run.rig.to_mlflow: b"vlatrack.uid", run.rig.to_wandb: b"upsertBucket"}
    left = {run.rig.to_mlflow: 1, run.rig.to_wandb: at.rng.randint(0, 1)}
    for proxy, sign in made.items():

        def strike(path: str, body: bytes, proxy: object = proxy, sign: bytes = sign) -> None:
            is_made = path.endswith("/runs/create") or path == "/graphql"
            if is_made and sign in body and left[proxy]:
                left[proxy] -= 1
                run.kill_delivery()

        proxy.answered = strike
    wait_until(lambda: left[run.rig.to_mlflow] == 0 or run.has_ended(), "MLflow has made the run")


def proxy_fault(kind: FaultKind, status: int = 500) -> Strike:
    def strike(run: StormRun, at: Moments) -> None:
        for _ in range(3):
            at.pause(3)
            fault = Fault(kind, status, seconds=at.rng.uniform(0.5, 8 if kind == "hang" else 1.5))
            run.rig.to_mlflow.fault = run.rig.to_wandb.fault = fault
            at.pause(3)
            run.rig.calm()

    return strike


def sqlite_locked(run: StormRun, at: Moments) -> None:
    store = run.files.runs / "mlflow.db"
    wait_until(lambda: run.cursors[0].read().url is not None or run.has_ended(), "MLflow is open")
    at.pause(2)
    with contextlib.closing(sqlite3.connect(store, timeout=60, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(at.sqlite_locked_s)
        database.execute("ROLLBACK")


def trackers_down(run: StormRun, at: Moments) -> None:
    """No tracker can be reached while the run lasts; then one sync has to bring everything."""
    run.rig.to_mlflow.fault = run.rig.to_wandb.fault = Fault(at.rng.choice(("refuse", "hang")), seconds=2)
    wait_until(lambda: run.has_ended() and run.delivery() is None, "the run is over", 120)
    assert not run.is_complete()
    run.rig.calm()
    run.sync().wait()
    assert run.is_complete()


def answered_by_the_proxy(run: StormRun, at: Moments) -> None:
    """Twice for a while, a proxy before MLflow says that all is well with what it stores of metrics,
    params, tags and the end, and passes it on to nobody."""
    for _ in range(2):
        at.pause(5)
        run.rig.to_mlflow.choose = lambda method, path: (
            Fault("status", 200, text="{}") if path.endswith(("/runs/log-batch", "/runs/update")) else None
        )
        at.pause(6)
        run.rig.calm()

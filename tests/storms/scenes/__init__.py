"""The storms: each breaks something at random moments of a run, seeded, and lets the oracle judge what arrived."""

import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fault_proxy import Fault, FaultKind
from mlflow_server import wait_until
from storm_rig import Outcome, Rig, StormRun

STEPS, PAUSE_S = 600, 0.008
TMPFS = "size=48m"


class CannotRageHereError(Exception):
    """This machine does not allow the storm; the text says why."""


@dataclass(frozen=True)
class Moments:
    """When a storm strikes, and for how long (seconds)."""

    rng: random.Random
    sqlite_locked_s: float = 30.0

    def pause(self, longest_s: float) -> None:
        time.sleep(self.rng.uniform(0, longest_s))


Strike = Callable[[StormRun, Moments], None]


def trainer_killed(run: StormRun, at: Moments) -> None:
    at.pause(5)
    run.kill_trainer()


def delivery_killed(run: StormRun, at: Moments) -> None:
    for _ in range(3):
        wait_until(lambda: run.delivery() is not None or run.has_ended(), "a delivery process")
        at.pause(6)
        run.kill_delivery()


def wandb_core_killed(run: StormRun, at: Moments) -> None:
    for _ in range(2):
        wait_until(lambda: run.kill_wandb_core() or run.has_ended(), "a wandb-core process")
        at.pause(4)


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


def disk_full(run: StormRun, at: Moments) -> None:
    at.pause(6)
    filler = run.files.runs / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    at.pause(4)
    filler.unlink()


def cursors_deleted(run: StormRun, at: Moments) -> None:
    _change_cursors(run, at, lambda path: path.unlink(missing_ok=True))


def cursors_stale(run: StormRun, at: Moments) -> None:
    at.pause(5)
    old = {path: path.read_bytes() for path in _cursor_paths(run)}
    at.pause(4)
    _change_cursors(run, at, lambda path: path.write_bytes(old.get(path, b"")))


def cursors_corrupt(run: StormRun, at: Moments) -> None:
    def corrupt(path: Path) -> None:
        text = path.read_bytes()
        path.write_bytes(text[: at.rng.randrange(len(text))] + at.rng.randbytes(at.rng.randrange(20)))

    _change_cursors(run, at, corrupt)


def torn_tail(run: StormRun, at: Moments) -> None:
    """The trainer dies in the middle of its last line, and training goes on from there."""
    at.pause(5)
    run.kill_trainer()
    run.kill_delivery()
    journal = run.files.journal
    whole = journal.read_bytes()
    begin = whole.rfind(b"\n", 0, len(whole) - 1) + 1
    with journal.open("r+b") as file:
        file.truncate(at.rng.randrange(begin, len(whole)) if begin else len(whole))
    run.train(STEPS // 4, PAUSE_S, first=STEPS)


def signalled(number: signal.Signals, status: str) -> Strike:
    def strike(run: StormRun, at: Moments) -> None:
        at.pause(5)
        run.signal_trainer(number, status)

    return strike


def two_syncs(run: StormRun, at: Moments) -> None:
    """Trainer and delivery are gone; of two syncs that start together, one may be killed."""
    at.pause(5)
    run.kill_trainer()
    run.kill_delivery()
    both = [run.sync(), run.sync()]
    at.pause(4)
    if at.rng.random() < 0.5:
        at.rng.choice(both).kill()
    for process in both:
        process.wait()


def trackers_down(run: StormRun, at: Moments) -> None:
    """No tracker can be reached while the run lasts; then one sync has to bring everything."""
    run.rig.to_mlflow.fault = run.rig.to_wandb.fault = Fault(at.rng.choice(("refuse", "hang")), seconds=2)
    wait_until(lambda: run.has_ended() and run.delivery() is None, "the run is over", 120)
    assert not run.is_complete()
    run.rig.calm()
    run.sync().wait()
    assert run.is_complete()


def resumed_from_earlier_steps(run: StormRun, at: Moments) -> None:
    """Training is killed and continued twice from a step that it had passed, while delivery is killed as well."""
    for _ in range(2):
        at.pause(3)
        run.kill_trainer()
        if at.rng.random() < 0.5:
            run.kill_delivery()
        run.train(STEPS // 2, PAUSE_S, first=at.rng.randrange(1, 100))


@dataclass(frozen=True)
class Scene:
    """A kind of storm."""

    name: str
    strike: Strike
    local_mlflow: bool = False
    tmpfs: bool = False
    timeout_s: float = 180
    """How long the trainer waits for the trackers at its end."""


SCENES = (
    Scene("trainer kill -9", trainer_killed),
    Scene("delivery process kill -9", delivery_killed),
    Scene("wandb-core kill -9", wandb_core_killed),
    Scene("MLflow server kill -9", server_killed),
    Scene("killed after the remote run was made", killed_after_the_remote_run_was_made),
    Scene("proxy: refuse", proxy_fault("refuse")),
    Scene("proxy: hang", proxy_fault("hang")),
    Scene("proxy: response cut", proxy_fault("cut")),
    Scene("proxy: slow", proxy_fault("slow")),
    *(Scene(f"proxy: {status}", proxy_fault("status", status)) for status in (401, 403, 404, 429, 500)),
    Scene("SQLite locked", sqlite_locked, local_mlflow=True),
    Scene("disk full", disk_full, local_mlflow=True, tmpfs=True),
    Scene("cursor deleted", cursors_deleted),
    Scene("cursor stale", cursors_stale),
    Scene("cursor corrupt", cursors_corrupt),
    Scene("torn tail", torn_tail),
    Scene("SIGTERM", signalled(signal.SIGTERM, "KILLED")),
    Scene("SIGINT", signalled(signal.SIGINT, "KILLED")),
    Scene("uncaught exception", signalled(signal.SIGUSR1, "FAILED")),
    Scene("two syncs at once", two_syncs),
    Scene("trackers down from start to end", trackers_down, timeout_s=2),
    Scene("resumed twice from earlier steps", resumed_from_earlier_steps),
)


def rage(scene: Scene, rig: Rig, seed: int, *, sqlite_locked_s: float = 30.0) -> Outcome:
    """One storm, from start to the oracle's verdict. Raises CannotRageHereError."""
    at = Moments(random.Random(f"{scene.name} {seed}"), sqlite_locked_s)
    uid = f"{''.join(c if c.isalnum() else '-' for c in scene.name)}-{seed}"
    with _runs_folder(scene, rig.folder / uid) as runs:
        run = StormRun(rig, uid, runs=runs, local_mlflow=scene.local_mlflow)
        try:
            run.train(STEPS, PAUSE_S, timeout_s=scene.timeout_s)
            scene.strike(run, at)
            rig.calm()
            run.await_complete()
            outcome = run.outcome()
            if not outcome.clean:
                print(run.last_words(), flush=True)
            return outcome
        finally:
            rig.calm()
            run.end()


@contextlib.contextmanager
def _runs_folder(scene: Scene, folder: Path) -> Iterator[Path | None]:
    if not scene.tmpfs:
        yield None
        return
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", TMPFS, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise CannotRageHereError("a tmpfs cannot be mounted here (root is needed)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _cursor_paths(run: StormRun) -> list[Path]:
    return [path for path in run.files.delivery.glob("*-?.json") if not path.name.startswith(".")]


def _change_cursors(run: StormRun, at: Moments, change: Callable[[Path], object]) -> None:
    wait_until(lambda: len(_cursor_paths(run)) == len(run.cursors) or run.has_ended(), "cursors")
    at.pause(3)
    run.kill_delivery()
    for path in _cursor_paths(run):
        change(path)

"""What a storm rages over: a real MLflow server and a double of W&B's, each behind a proxy; and the oracle."""

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from fault_proxy import FaultProxy
from mlflow_server import MlflowServer, wait_until
from wandb_double import WandbDouble

from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.records import Kind, finish_record, last_record, read_records
from vlatrack.tracking.run_files import RunFiles

Row = tuple[str, int, int, float]
"""Name, timestamp in Unix milliseconds, training step, value."""

PATIENCE_S = 240.0
ENDS = (0, -1, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""How a trainer may end: well, by an error, by a signal."""


@dataclass(frozen=True)
class Outcome:
    """What the oracle found in one storm, over all trackers."""

    rows: int
    lost: int
    duplicated: int
    files_lost: int
    """Trackers that do not have the run's artifact."""
    wrong_ends: int
    """Trackers whose run does not have the status that it ought to have, or that have more than one run."""

    @property
    def clean(self) -> bool:
        return self.rows > 0 and self.lost == self.duplicated == self.files_lost == self.wrong_ends == 0


@dataclass(frozen=True)
class Rig:
    """Servers and proxies that the storms of one session share."""

    folder: Path
    mlflow: MlflowServer
    wandb: WandbDouble
    to_mlflow: FaultProxy
    to_wandb: FaultProxy

    def calm(self) -> None:
        """No more faults."""
        for proxy in (self.to_mlflow, self.to_wandb):
            proxy.fault = proxy.answered = None


@contextlib.contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    """Start the servers and the proxies; on leaving, end them."""
    server = MlflowServer(folder)
    server.start()
    try:
        with WandbDouble() as double, FaultProxy(server.url) as to_mlflow, FaultProxy(double.url) as to_wandb:
            yield Rig(folder, server, double, to_mlflow, to_wandb)
    finally:
        server.kill()


class StormRun:
    """One run in a storm: its trainer, its delivery process, and what the trackers hold of it."""

    def __init__(self, rig: Rig, uid: str, *, runs: Path | None = None, local_mlflow: bool = False) -> None:
        self.rig = rig
        self.uid = uid
        self.files = RunFiles((runs or rig.folder / "runs") / "storm" / uid)
        self._store = self.files.runs / "mlflow.db" if local_mlflow else rig.mlflow.store
        self._artifacts = self.files.runs / "mlartifacts" if local_mlflow else rig.mlflow.artifacts
        options = {} if local_mlflow else {"tracking_uri": rig.to_mlflow.url}
        self._backends = [{"kind": "mlflow", "options": options}, {"kind": "wandb", "options": {"mode": "online"}}]
        self.cursors = [CursorFile(self.files.delivery, label) for label in ("mlflow-0", "wandb-1")]
        self.trainer: subprocess.Popen[str] | None = None
        self.expected_status: str | None = None
        """How the run ought to end; None: as its journal says."""
        self._trainer_errors = rig.folder / f"{uid}.stderr"

    def train(self, steps: int, pause_s: float, *, first: int = 0, timeout_s: float = 180) -> None:
        """Start the trainer, at step `first`; it returns at once. At its end it waits `timeout_s` for the trackers."""
        arguments = [self.files.run_dir, self.uid, json.dumps(self._backends), first, steps, pause_s, timeout_s]
        command = [sys.executable, str(Path(__file__).with_name("storm_trainer.py")), *map(str, arguments)]
        with self._trainer_errors.open("a") as errors:
            self.trainer = subprocess.Popen(
                command, env=self._environment(), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        wait_until(lambda: self.has_ended() or self.files.delivery_lock.exists(), "the trainer starts", 60)

    def has_ended(self) -> bool:
        return self.trainer is not None and self.trainer.poll() is not None

    def signal_trainer(self, number: signal.Signals, status: str) -> None:
        """Strike a living trainer, whose run then ought to end with this status."""
        assert self.trainer is not None, "train first"
        has_begun = last_record(self.files.journal) is not None
        if has_begun and finish_record(self.files.journal) is None and not self.has_ended():
            self.expected_status = status
            self.trainer.send_signal(number)

    def sync(self) -> "subprocess.Popen[bytes]":
        """Start a `vlatrack sync` of this run."""
        command = [sys.executable, "-m", "vlatrack", "sync", str(self.files.run_dir), "--trust-backends"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self._environment(), **quiet)

    def kill_trainer(self) -> None:
        assert self.trainer is not None, "train first"
        self.trainer.kill()
        self.trainer.wait()

    def delivery(self) -> psutil.Process | None:
        """The living delivery process of this run."""
        text = self.files.delivery_lock.read_text() if self.files.delivery_lock.exists() else ""
        try:
            process = psutil.Process(int(text))
            ours = str(self.files.run_dir) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except (ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if ours else None

    def kill_delivery(self) -> bool:
        process = self.delivery()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return process is not None

    def kill_wandb_core(self) -> bool:
        delivery = self.delivery()
        killed = False
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in delivery.children(recursive=True) if delivery else []:
                if child.name() == "wandb-core":
                    child.kill()
                    killed = True
        return killed

    def await_complete(self) -> int:
        """Wait for the trainer, deliver what is left as often as it takes; the number of lost records."""
        assert self.trainer is not None, "train first"
        said, _ = self.trainer.communicate(timeout=PATIENCE_S)
        assert -self.trainer.returncode in ENDS, self._trainer_errors.read_text()
        for _ in range(3):
            # A sync is turned away while the run's own delivery process, which may just have begun, is at it.
            wait_until(self._delivery_ended, "the delivery process ends", PATIENCE_S)
            if self.is_complete():
                break
            self.sync().wait(PATIENCE_S)
        return int(said or 0)

    def end(self) -> None:
        """Kill whatever of this run still lives."""
        if self.trainer is not None and self.trainer.poll() is None:
            self.kill_trainer()
        self.kill_wandb_core()
        self.kill_delivery()

    def outcome(self) -> Outcome:
        """Compare the trackers with the journal."""
        records = list(read_records(self.files.journal))
        assert [record.seq for record in records] == list(range(len(records))), "gaps in the journal"
        metrics = [record for record in records if record.kind == Kind.METRICS]
        truth = Counter((name, r.t_ms, r.step or 0, value) for r in metrics for name, value in r.data.items())
        ends = [record.data["status"] for record in records if record.kind == Kind.FINISH]
        expected = [self.expected_status or end for end in ends[-1:]]
        lost = duplicated = wrong = 0
        for rows, statuses in (self._at_mlflow(), self._at_wandb()):
            held = Counter(rows)
            lost += (truth - held).total()
            duplicated += (held - truth).total()
            wrong += [status.upper() for status in statuses] != expected
        files = sum(record.kind == Kind.ARTIFACT for record in records)
        files_lost = 0 if not files else (not self._note_at_mlflow()) + (not self._note_at_wandb())
        return Outcome(truth.total(), lost, duplicated, files_lost, wrong)

    def last_words(self) -> str:
        """How far each tracker got and what its delivery said last, to look for the cause of a loss."""
        cursors = "\n".join(f"{cursor.read()}" for cursor in self.cursors)
        log = self.files.delivery_log
        said = log.read_text().splitlines() if log.exists() else ["no delivery process has begun"]
        return "\n".join([cursors, *(line[:300] for line in said if line.startswith("20"))][-40:])

    def is_complete(self) -> bool:
        last = last_record(self.files.journal)
        done = min(cursor.read().seq for cursor in self.cursors)
        return last is not None and last.seq == done and finish_record(self.files.journal) is not None

    def _delivery_ended(self) -> bool:
        with self.files.delivery_lock.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
        wandb = {"WANDB_BASE_URL": self.rig.to_wandb.url, "WANDB_API_KEY": "k" * 40}
        config = {"XDG_CONFIG_HOME": str(self.files.runs / ".config")}
        return ours | wandb | config | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}

    def _at_mlflow(self) -> tuple[list[Row], Sequence[str]]:
        """From the database itself: the server would hide what it holds twice."""
        mine = "(SELECT run_uuid FROM tags WHERE key = 'vlatrack.uid' AND value = ?)"
        rows = f"SELECT key, timestamp, step, value FROM metrics WHERE run_uuid IN {mine}"
        with contextlib.closing(sqlite3.connect(self._store)) as store:
            statuses = store.execute(f"SELECT status FROM runs WHERE run_uuid IN {mine}", [self.uid]).fetchall()
            return list(store.execute(rows, [self.uid])), [status for (status,) in statuses]

    def _at_wandb(self) -> tuple[list[Row], Sequence[str]]:
        run = self.rig.wandb.runs.get(self.uid)
        if run is None:
            return [], []
        rows = [
            (name, round(row["_timestamp"] * 1000), row["train_step"], value)
            for row in run.rows
            for name, value in row.items()
            if name != "train_step" and not name.startswith("_")
        ]
        return rows, [run.state]

    def _note_at_mlflow(self) -> bool:
        notes = self._artifacts.rglob("note.txt")
        return any(note.read_text() == f"of {self.uid}\n" for note in notes)

    def _note_at_wandb(self) -> bool:
        kept = [a for a in self.rig.wandb.artifacts.values() if a["state"] == "COMMITTED"]
        named = [a for a in kept if a["asked"]["artifactCollectionName"] == f"{self.uid}-note.txt"]
        return bool(named) and f"of {self.uid}\n".encode() in self.rig.wandb.uploads.values()

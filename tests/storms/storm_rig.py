"""What a storm rages over: a real MLflow server and a double of W&B's, each behind a proxy; and the
processes of a run."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import psutil
from fault_proxy import FaultProxy
from mlflow_server import MlflowServer, wait_until
from oracle import Outcome, judge, mlflow_tracker, number_behind, offline_wandb_tracker, wandb_tracker
from storm_trainer import Training
from wandb_double import WandbDouble

from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.records import finish_record, last_record
from vlatrack.tracking.run_files import RunFiles

PATIENCE_S = 240.0
ENDS = (0, -1, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""How a trainer may end: well, by an error, by a signal."""


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
            proxy.choose = lambda method, path: None


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


@dataclass(frozen=True)
class Runner:
    """As whom the processes of a run are started: the beginning of their command lines, and the variables that they do
    not have."""

    prefix: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class StormRun:
    """One run in a storm: its trainer, its delivery process, and what the trackers hold of it."""

    def __init__(
        self,
        rig: Rig,
        uid: str,
        *,
        runs: Path | None = None,
        local_mlflow: bool = False,
        second_wandb: Mapping[str, str] | None = None,
        runner: "Runner" = Runner(),
    ) -> None:
        """`second_wandb` are the options of another W&B backend, none if None; `runner` says as whom it all runs."""
        self.rig = rig
        self.uid = uid
        self.files = RunFiles((runs or rig.folder / "runs") / "storm" / uid)
        self.trainer: subprocess.Popen[bytes] | None = None
        self.expected_status: str | None = None
        """How the run ought to end; None: as its journal says."""
        self.blocked = self.wrong_ends = 0
        """What a scene has seen itself, see `Outcome`."""
        self._runner = runner
        self._trainer_errors = rig.folder / f"{uid}.stderr"
        here = self.files.runs / "mlflow.db", self.files.runs / "mlartifacts"
        there = rig.mlflow.store, rig.mlflow.artifacts
        self.trackers = [mlflow_tracker(*(here if local_mlflow else there)), wandb_tracker(rig.wandb)]
        options = {} if local_mlflow else {"tracking_uri": rig.to_mlflow.url}
        self._backends = [{"kind": "mlflow", "options": options}, {"kind": "wandb", "options": {"mode": "online"}}]
        if second_wandb is not None:
            self._backends.append({"kind": "wandb", "options": dict(second_wandb)})
            is_offline = second_wandb["mode"] == "offline"
            self.trackers.append(offline_wandb_tracker("-2") if is_offline else wandb_tracker(rig.wandb, "-2"))

    @property
    def cursors(self) -> list[CursorFile]:
        labels = [f"{backend['kind']}-{index}" for index, backend in enumerate(self._backends)]
        return [CursorFile(self.files.delivery, label) for label in labels]

    def train(self, training: Training) -> None:
        """Start the trainer; it returns as soon as that has begun."""
        arguments = [self.files.run_dir, self.uid, json.dumps(self._backends), json.dumps(asdict(training))]
        command = [sys.executable, str(Path(__file__).with_name("storm_trainer.py")), *map(str, arguments)]
        with self._trainer_errors.open("a") as errors:
            self.trainer = self._start(command, errors)
        wait_until(lambda: self.has_ended() or self.files.delivery_lock.exists(), "the trainer starts", 60)

    def has_begun(self) -> bool:
        """Whether the journal has a record."""
        return last_record(self.files.journal) is not None

    def has_ended(self) -> bool:
        """Whether the trainer is gone."""
        return self.trainer is not None and self.trainer.poll() is not None

    def signal_trainer(self, number: signal.Signals, status: str) -> None:
        """Strike a living trainer, whose run then ought to end with this status."""
        assert self.trainer is not None, "train first"
        if self.has_begun() and finish_record(self.files.journal) is None and not self.has_ended():
            self.expected_status = status
            self.trainer.send_signal(number)

    def sync(self, *options: str, run_dir: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a `vlatrack sync` of this run, or of a copy of it."""
        return self.vlatrack("sync", str(run_dir or self.files.run_dir), "--trust-destination", *options)

    def vlatrack(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start a command."""
        return self._start([sys.executable, "-m", "vlatrack", *words], subprocess.DEVNULL)

    def kill_trainer(self) -> None:
        assert self.trainer is not None, "train first"
        self.trainer.kill()
        self.trainer.wait()

    def delivery(self) -> psutil.Process | None:
        """The living delivery process of this run."""
        text = self.files.delivery_lock.read_text() if self.files.delivery_lock.exists() else ""
        try:
            process = psutil.Process(int(text))
            named = {Path(word).name for word in process.cmdline()}  # the folder may have been moved since
            return process if self.uid in named and process.status() != psutil.STATUS_ZOMBIE else None
        except (ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None

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

    def await_trainer(self) -> None:
        """Wait for its end; AssertionError if it is not one that it ought to have."""
        assert self.trainer is not None, "train first"
        code = self.trainer.wait(PATIENCE_S)
        assert -code in (ENDS if self.expected_status != "FINISHED" else (0,)), self._trainer_errors.read_text()

    def await_complete(self) -> None:
        """Wait for the trainer, and deliver what is left as often as it takes."""
        self.await_trainer()
        for _ in range(3):
            # A sync is turned away while the run's own delivery process, which may just have begun, is at it.
            wait_until(self._delivery_ended, "the delivery process ends", PATIENCE_S)
            if self.is_complete():
                break
            self.sync().wait(PATIENCE_S)

    def end(self) -> None:
        """Kill whatever of this run still lives."""
        if self.trainer is not None and not self.has_ended():
            self.kill_trainer()
        self.kill_wandb_core()
        self.kill_delivery()

    def number_behind(self) -> int:
        """How many trackers lack a metric, or the end, of a run that has one."""
        return number_behind(self.files, self.uid, self.trackers)

    def outcome(self) -> Outcome:
        found = judge(self.files, self.uid, self.trackers, self.expected_status)
        return replace(found, blocked=self.blocked, wrong_ends=found.wrong_ends + self.wrong_ends)

    def last_words(self) -> str:
        """How far each tracker got and what its delivery said last, to look for the cause of a loss."""
        cursors = "\n".join(f"{cursor.read()}" for cursor in self.cursors)
        log = self.files.delivery_log
        said = log.read_text().splitlines() if log.exists() else ["no delivery process has begun"]
        return "\n".join([cursors, *(line[:300] for line in said if line.startswith("20"))][-40:])

    def is_complete(self) -> bool:
        """Whether the run has ended and its trackers have acknowledged everything."""
        last, cursors = last_record(self.files.journal), [cursor.read() for cursor in self.cursors]
        have_all = all(cursor.is_all and last is not None and cursor.seq == last.seq for cursor in cursors)
        return have_all and finish_record(self.files.journal) is not None

    def _delivery_ended(self) -> bool:
        with self.files.delivery_lock.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _start(self, command: Sequence[str], errors: "IO[str] | int") -> "subprocess.Popen[bytes]":
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
        wandb = {"WANDB_BASE_URL": self.rig.to_wandb.url, "WANDB_API_KEY": "k" * 40}
        config = {"XDG_CONFIG_HOME": str(self.files.runs / ".config")}
        all_of_it = ours | wandb | config | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        return subprocess.Popen(
            [*self._runner.prefix, *command],
            env={name: value for name, value in all_of_it.items() if name not in self._runner.without},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )

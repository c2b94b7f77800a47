"""The speed of tracking: logging, health, delivery to MLflow on SQLite, and journals of any length.

Times are wall-clock times, so other load on the machine affects them.
"""

import contextlib
import math
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.health.monitor import HealthMonitor
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, sqlite_uri
from vlatrack.tracking.backends.registry import backends_text, check_backend_available
from vlatrack.tracking.delivery.supervisor import python_module
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import JournalReader, Kind, last_record
from vlatrack.tracking.privacy import private_directory, write_private
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

SCALARS = 20
_START = {"name": "bench", "experiment": "bench", "params": {}, "tags": {}}
_LONGEST_DELIVERY_S = 3600
_LINES_AT_ONCE = 10_000
_TAILED = 100


@dataclass(frozen=True)
class LoggingSpeed:
    """`run.log` of 20 scalars: microseconds per call, and calls per second without a pause."""

    calls: int
    p50_us: float
    p99_us: float
    calls_per_s: float


@dataclass(frozen=True)
class DeliverySpeed:
    """Delivery of a whole journal to MLflow on SQLite; `seconds` excludes the start of the process."""

    records: int
    metrics: int
    seconds: float
    peak_mb: float
    """Largest resident memory of the delivery process, in MB of 10^6 bytes."""

    @property
    def metrics_per_s(self) -> float:
        return self.metrics / self.seconds


@dataclass(frozen=True)
class JournalSpeed:
    """A journal of `records` records: seconds to open it, to read a record after its append, and to get its status."""

    records: int
    size_mb: float
    open_s: float
    tail_s: float
    status_s: float


def measure_logging(folder: Path, calls: int) -> LoggingSpeed:
    """Time `run.log` without any tracker."""
    run = _start(folder, [])
    speed = _time_calls(run, calls)
    run.finish("FINISHED")
    return speed


def measure_logging_while_trackers_are_down(folder: Path, calls: int) -> LoggingSpeed:
    """Time `run.log` while a delivery process fails to reach MLflow and, if it is installed, W&B."""
    with _closed_address() as address, _environment(WANDB_BASE_URL=address, WANDB_API_KEY="0" * 40):
        run = _start(folder, _unreachable(address))
        files = RunFiles(folder)
        give_up = time.monotonic() + 120
        while not list(files.delivery.glob("*-0.json")):  # written when the first attempt has failed
            if time.monotonic() > give_up:
                raise TrackerError(f"{files.delivery_log}: the delivery process does not start")
            time.sleep(0.05)
        speed = _time_calls(run, calls)
        run.finish("FINISHED", timeout_s=0)
    return speed


def measure_health(records: int) -> float:
    """Microseconds for which the detectors of `vlatrack health` look at a record of 20 scalars, on average."""
    monitor = HealthMonitor()
    begin = time.perf_counter()
    for step in range(records):
        values = {f"train_l1_loss_action_{x}": (1 + math.sin(step + x) / 9) / (1 + step / 100) for x in range(SCALARS)}
        monitor.observe(values, step=step, t_ms=step * 100)
    return (time.perf_counter() - begin) / records * 1e6


def measure_delivery(runs: Path, sizes: Sequence[int], scalars: int) -> list[DeliverySpeed]:
    """Deliver journals with `sizes` records of `scalars` metrics each, one after the other, to the store in `runs`."""
    _deliver(runs, "store", 0, scalars)  # makes the database
    idle_s, _ = _deliver(runs, "idle", 0, scalars)
    speeds = []
    for records in sizes:
        seconds, peak_mb = _deliver(runs, f"{records}-of-{scalars}", records, scalars)
        speeds.append(DeliverySpeed(records, records * scalars, max(seconds - idle_s, 1e-3), peak_mb))
    return speeds


def measure_journal(folder: Path, records: int) -> JournalSpeed:
    """Write a journal of `records` records (about 130 bytes each) and time its use."""
    files = RunFiles(folder)
    _write_long_journal(files, records)
    begin = time.perf_counter()
    journal = Journal.open(files.journal, run="bench", writer="trainer")
    opened = time.perf_counter()
    with contextlib.closing(journal):
        tailing = [_time_tail(journal, step) for step in range(records, records + _TAILED)]
    asked = time.perf_counter()
    status = run_status(folder)
    answered = time.perf_counter()
    assert status.last_step == records + _TAILED - 1, status
    size_mb = files.journal.stat().st_size / 1e6
    return JournalSpeed(records, size_mb, opened - begin, max(tailing), answered - asked)


def local_mlflow(runs: Path) -> BackendConfig:
    """MLflow on SQLite in the folder of the runs, even if the environment names a server."""
    return BackendConfig("mlflow", options={"tracking_uri": sqlite_uri(runs.resolve() / MLFLOW_STORE)})


def _start(folder: Path, backends: Sequence[BackendConfig]) -> TrackedRun:
    return TrackedRun.start(
        folder, uid="bench", name="bench", experiment="bench", backends=backends, params={}, tags={}
    )


def _time_calls(run: TrackedRun, calls: int) -> LoggingSpeed:
    metrics = {f"train_l1_loss_action_{x}": x / 7 for x in range(SCALARS)}
    times = []
    begin = time.perf_counter()
    for step in range(calls):
        before = time.perf_counter_ns()
        run.log(metrics, step=step)
        times.append(time.perf_counter_ns() - before)
    took = time.perf_counter() - begin
    return LoggingSpeed(
        calls, statistics.median(times) / 1e3, statistics.quantiles(times, n=100)[98] / 1e3, calls / took
    )


def _unreachable(address: str) -> list[BackendConfig]:
    backends = [BackendConfig("mlflow", options={"tracking_uri": address})]
    with contextlib.suppress(MissingPackageError):  # W&B is an extra
        check_backend_available("wandb")
        backends.append(BackendConfig("wandb", options={"mode": "online"}))
    return backends


@contextlib.contextmanager
def _closed_address() -> Iterator[str]:
    """A local address that refuses connections; its port is bound, so that no other process can take it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _deliver(runs: Path, name: str, records: int, scalars: int) -> tuple[float, float]:
    """Seconds and peak MB of a delivery process for a finished run that has not been delivered yet."""
    files = RunFiles(runs / "bench" / name)
    private_directory(files.delivery)
    until = int((time.time() + _LONGEST_DELIVERY_S) * 1000)
    with contextlib.closing(Journal.open(files.journal, run=f"bench-{name}", writer="trainer")) as journal:
        journal.append(Kind.START, _START)
        for step in range(records):
            journal.append(Kind.METRICS, {f"train_l1_loss_action_{x}": step + x / 7 for x in range(scalars)}, step=step)
        journal.append(Kind.FINISH, {"status": "FINISHED", "reason": None, "deliver_until_ms": until})
    write_private(files.backends, backends_text([local_mlflow(files.runs)]))
    begin = time.perf_counter()
    with files.delivery_log.open("wb") as log:
        process = subprocess.Popen(
            [*python_module("vlatrack.tracking.delivery.worker"), str(files.run_dir), "--trust-destination"],
            stdout=log,
            stderr=log,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TrackerError(f"{files.delivery_log}: delivery failed with exit code {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e6


def _write_long_journal(files: RunFiles, records: int) -> None:
    """Write what `Journal` would write, but much faster: one record's line with other numbers."""
    private_directory(files.run_dir)
    with contextlib.closing(Journal.open(files.journal, run="bench", writer="trainer")) as journal:
        journal.append(Kind.START, _START)
        journal.append(Kind.METRICS, {"train_closs": 0.5}, step=0)
    line = files.journal.read_text().splitlines()[-1]
    seq, step = '"seq":1,', '"step":0,'
    assert line.count(seq) == line.count(step) == 1, line
    template = line.replace("{", "{{").replace("}", "}}").replace(seq, '"seq":{},').replace(step, '"step":{},') + "\n"
    with files.journal.open("a") as file:
        for first in range(1, records, _LINES_AT_ONCE):
            steps = range(first, min(first + _LINES_AT_ONCE, records))
            file.write("".join(template.format(step + 1, step) for step in steps))
    last = last_record(files.journal)
    assert last is not None, "just written"


def _time_tail(journal: Journal, step: int) -> float:
    """Seconds from before a record is appended until a reader at the end of the journal has read it."""
    reader = JournalReader(journal.path, offset=journal.path.stat().st_size)
    begin = time.perf_counter()
    journal.append(Kind.METRICS, {"train_closs": 0.5}, step=step)
    (record,) = reader.read(1)
    assert record.step == step, record
    return time.perf_counter() - begin

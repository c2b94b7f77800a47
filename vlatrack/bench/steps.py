"""The cost of tracking per training step: all trackers on against off, in alternating short blocks of one training.

The training is the experiment's own: its model, data, loop and settings. While tracking is on, metrics go into the
journal and, through the delivery process, to MLflow on SQLite, TensorBoard and W&B (the real client in offline mode,
which writes files), as in any run. While it is off, metrics are dropped and the delivery process and its children are
suspended (SIGSTOP); what they have left to do, they do in the next block with tracking on, so that all of their work
counts. They are started before the first measured block.
"""

import random
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from vlatrack.bench.tracking import local_mlflow
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import build_schema
from vlatrack.builders.training import build_accelerator, build_training, home_of, keeps_on_host
from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.runner.directory import RunDirectory
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import load_spec
from vlatrack.spec.tracking import TrackingSpec
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import check_backend_available
from vlatrack.tracking.delivery.report import delivery_report, labels_of
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.system import Machine
from vlatrack.training.callback import Callback
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import Training
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState
from vlatrack.training.torch_process_group import process_group_of_one

RECORDS_PER_BLOCK = 6
"""At the quickstart's speed, a block then lasts longer than delivery collects records (tail.BATCH_INTERVAL_S)."""
_WARM_UP_BLOCKS = 2
_OPENING_S = 120.0
_RESAMPLINGS = 2000


@dataclass(frozen=True)
class StepTime:
    """Mean seconds of a training step with tracking on and off, measured in pairs of blocks of `steps` steps."""

    trackers: tuple[str, ...]
    steps: int
    on_s: tuple[float, ...]
    off_s: tuple[float, ...]
    """One entry per block; block i of one list was measured next to block i of the other."""
    delivery_cpu_s: float
    """CPU time of the delivery process and its children."""

    @property
    def off_mean_s(self) -> float:
        return statistics.fmean(self.off_s)

    @property
    def ratio(self) -> float:
        """Step time with tracking on, divided by step time with tracking off."""
        return statistics.fmean(self.on_s) / self.off_mean_s

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the ratio, by bootstrapping the pairs."""
        draw, pairs = random.Random(0), list(zip(self.on_s, self.off_s, strict=True))  # noqa: S311
        ratios = []
        for _ in range(_RESAMPLINGS):
            drawn = draw.choices(pairs, k=len(pairs))
            ratios.append(sum(on for on, _ in drawn) / sum(off for _, off in drawn))
        cuts = statistics.quantiles(ratios, n=40)
        return cuts[0], cuts[-1]

    @property
    def delivery_load(self) -> float:
        """CPU time of delivery per second of training with tracking on; 1.0 is one core."""
        return self.delivery_cpu_s / (sum(self.on_s) * self.steps)


def measure_step_time(experiment: Path, runs: Path, pairs: int) -> StepTime:
    """Train `experiment` in a new run below `runs` for `pairs` pairs of blocks, after a warm-up.

    Raises:
        VlatrackError: the experiment or its data cannot be used, or a tracker cannot be opened.
    """
    steps = load_spec(experiment).tracking.log_every * RECORDS_PER_BLOCK
    total = steps * (_WARM_UP_BLOCKS + 2 * pairs)
    spec = load_spec(experiment, [f"train.max_steps={total}", f"train.epochs={total}"])
    directory = RunDirectory.create(runs, spec)
    backends = _backends(runs)
    with TrackedRun.start(
        directory.path,
        uid=directory.uid,
        name=directory.run_id,
        experiment=spec.name,
        backends=backends,
        params=flatten(spec),
        tags={},
    ) as tracked:
        delivery = _Delivery(directory.path)
        callback = _AlternatingTracking(tracked, delivery, build_schema(spec), spec.tracking, steps)
        try:
            with process_group_of_one(needed=keeps_on_host(spec)):
                _build(spec, directory, callback).run(TrainState(), NoCheckpoints(), lambda state: {})
        finally:
            delivery.resume()
    trackers = tuple(config.kind for config in backends)
    return StepTime(trackers, steps, tuple(callback.on_s), tuple(callback.off_s), callback.delivery_cpu_s)


def _build(spec: ExperimentSpec, directory: RunDirectory, callback: Callback) -> Training:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"val_ind": None, "val_ood": None})})
    experiment, group = Experiment.new(spec, store=directory.store), ProcessGroup()
    accelerator = build_accelerator(spec)
    policy = experiment.policy(home_of(spec, accelerator.device))
    encoding = experiment.encoding(policy.layout, directory.tokenizer, accelerator.device)
    samples = experiment.samples(encoding)
    return build_training(experiment, policy, samples[TRAIN], accelerator, group, Interruption(group), [callback])


class NoCheckpoints:
    """Steps are measured without checkpoints."""

    last_name = None

    def save(self, state: TrainState) -> None:
        """Saves nothing."""

    def poll(self) -> None:
        """Nothing is being written."""

    wait = poll

    def restore_last(self) -> TrainState:
        raise AssertionError("a benchmark halts where a step is not finite")


def _backends(runs: Path) -> list[BackendConfig]:
    """All built-in trackers whose packages are installed, set up to keep everything on this machine."""
    wanted = [
        local_mlflow(runs),
        BackendConfig("wandb", options={"mode": "offline"}),
        BackendConfig("tensorboard"),
    ]
    installed = []
    for config in wanted:
        try:
            check_backend_available(config.kind)
        except MissingPackageError:
            continue  # the figure names the ones that are measured
        installed.append(config)
    return installed


class _Delivery:
    """The delivery process of a run with its children, which can be suspended."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._labels = labels_of(run_dir)
        self._suspended: list[psutil.Process] = []

    def wait_until_complete(self) -> None:
        """Wait until each tracker is open and has all records so far."""
        give_up = time.monotonic() + _OPENING_S
        while not (report := delivery_report(self._run_dir, self._labels)).complete:
            if time.monotonic() > give_up:
                errors = [f"{backend.label}: {backend.error}" for backend in report.backends if backend.undelivered]
                raise TrackerError(f"{RunFiles(self._run_dir).delivery_log}: no delivery ({'; '.join(errors)})")
            time.sleep(0.05)

    def suspend(self) -> None:
        self._suspended = self._processes()
        for process in self._suspended:
            process.suspend()

    def resume(self) -> None:
        while self._suspended:
            self._suspended.pop().resume()

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(spent.user + spent.system for spent in times)

    def _processes(self) -> list[psutil.Process]:
        """The process itself first, so that it cannot start more children once it is suspended."""
        process = psutil.Process(int(RunFiles(self._run_dir).delivery_lock.read_text()))
        return [process, *process.children(recursive=True)]


class _AlternatingTracking(Callback):
    """Switches tracking on and off during a training, and measures the time of each block.

    After the warm-up, blocks run in the order on, off, off, on, so that a slow drift of the machine favours neither.
    """

    def __init__(
        self, tracked: TrackedRun, delivery: _Delivery, schema: MetricSchema, spec: TrackingSpec, steps: int
    ) -> None:
        self._tracked, self._delivery, self._schema, self._steps = tracked, delivery, schema, steps
        self._system = _SystemRecords(tracked, spec.system_every_s)
        self._block = 0
        self._is_on = True
        self._cpu_before_s = 0.0
        self.on_s: list[float] = []
        self.off_s: list[float] = []
        self.delivery_cpu_s = 0.0
        self._begin = time.perf_counter()

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        if self._is_on:
            self._schema.check(metrics)
            self._tracked.log(metrics, step=state.step)

    def on_step(self, state: TrainState) -> None:
        if self._is_on:
            self._system.record_if_due()
        if state.step % self._steps == 0:
            self._end_block()

    def _end_block(self) -> None:
        if self._is_on:
            self._system.pause()
            self._tracked.sync()
        step_s = (time.perf_counter() - self._begin) / self._steps
        self._block += 1
        if self._block > _WARM_UP_BLOCKS:
            (self.on_s if self._is_on else self.off_s).append(step_s)
            self.delivery_cpu_s = self._delivery.cpu_s() - self._cpu_before_s
        elif self._block == _WARM_UP_BLOCKS:
            self._delivery.wait_until_complete()
            self._cpu_before_s = self._delivery.cpu_s()
        self._switch()
        self._begin = time.perf_counter()

    def _switch(self) -> None:
        number = self._block - _WARM_UP_BLOCKS
        wanted = number < 0 or number % 4 in (0, 3)
        if wanted != self._is_on:
            (self._delivery.resume if wanted else self._delivery.suspend)()
        self._is_on = wanted
        self._system.resume()


class _SystemRecords:
    """Logs system metrics as `SystemSampler` does, on a clock that is paused while tracking is off."""

    def __init__(self, tracked: TrackedRun, every_s: float | None) -> None:
        self._tracked, self._every_s = tracked, every_s
        self._machine = Machine()
        self._thread: threading.Thread | None = None
        self._waited_s, self._since = 0.0, time.perf_counter()

    def record_if_due(self) -> None:
        if self._every_s is not None and self._waited_s + time.perf_counter() - self._since >= self._every_s:
            self._waited_s, self._since = 0.0, time.perf_counter()
            self._thread = threading.Thread(target=self._record, daemon=True)
            self._thread.start()

    def pause(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._waited_s += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def _record(self) -> None:
        self._tracked.log(self._machine.measure(), step=self._tracked.last_step)

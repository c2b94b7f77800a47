"""What tracking costs a training step: all trackers on against none, in one process, in short blocks that take turns.

The training is the experiment's own: its model, data, loop and settings. While tracking is on, the loop's records and
those of the system go the way of every run: into the journal, and from there, by the delivery process, to MLflow on
SQLite, TensorBoard and W&B (offline: the real client, which writes files). While it is off, records go nowhere and the
delivery process and its children are stopped (SIGSTOP). What they still have to do when a block ends, they do in the
next block with tracking on, so no work of theirs is left out of the figure. Their start is over before it begins.
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
from vlatrack.builders.training import build_accelerator, build_training
from vlatrack.data.cache import CodeCache
from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.metrics.schema import TRAIN, MetricSchema
from vlatrack.runner.directory import RunDirectory
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import load_spec
from vlatrack.spec.models import ExperimentSpec, TrackingSpec
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

RECORDS_PER_BLOCK = 6
"""A block then lasts longer than the delivery process lets records come together (tail.BATCH_INTERVAL_S), at the
quickstart's speed."""
_WARM_UP_BLOCKS = 2
_OPENING_S = 120.0
_RESAMPLINGS = 2000


@dataclass(frozen=True)
class StepTime:
    """Mean seconds of a training step with tracking on and off, from `blocks` pairs of blocks of `steps` steps."""

    trackers: tuple[str, ...]
    steps: int
    on_s: tuple[float, ...]
    off_s: tuple[float, ...]
    """One entry a block, in pairs: block i of the one was measured next to block i of the other."""
    delivery_cpu_s: float
    """Processor time of the delivery process and its children in the blocks with tracking on."""

    @property
    def off_mean_s(self) -> float:
        return statistics.fmean(self.off_s)

    @property
    def ratio(self) -> float:
        """Step time with tracking on, against off."""
        return statistics.fmean(self.on_s) / self.off_mean_s

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the ratio with a confidence of 95 %: the pairs drawn anew, with replacement, many times."""
        draw, pairs = random.Random(0), list(zip(self.on_s, self.off_s, strict=True))  # noqa: S311
        ratios = []
        for _ in range(_RESAMPLINGS):
            drawn = draw.choices(pairs, k=len(pairs))
            ratios.append(sum(on for on, _ in drawn) / sum(off for _, off in drawn))
        cuts = statistics.quantiles(ratios, n=40)
        return cuts[0], cuts[-1]

    @property
    def delivery_load(self) -> float:
        """Processors that delivery keeps busy while the training goes on: 0.01 is one hundredth of one."""
        return self.delivery_cpu_s / (sum(self.on_s) * self.steps)


def measure_step_time(experiment: Path, runs: Path, pairs: int) -> StepTime:
    """Train the experiment at `experiment` below `runs` for so many pairs of blocks.

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
        turns = _TakingTurns(tracked, delivery, build_schema(spec), spec.tracking, steps)
        try:
            _build(spec, directory, turns).run(TrainState(), _NoCheckpoints(), lambda state: {})
        finally:
            delivery.go_on()
    trackers = tuple(config.kind for config in backends)
    return StepTime(trackers, steps, tuple(turns.on_s), tuple(turns.off_s), turns.delivery_cpu_s)


def _build(spec: ExperimentSpec, directory: RunDirectory, callback: Callback) -> Training:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"val_ind": None, "val_ood": None})})
    experiment, group = Experiment.new(spec), ProcessGroup()
    accelerator = build_accelerator(spec)
    policy = experiment.policy(accelerator.device)
    encoding = experiment.encoding(policy.layout, directory.tokenizer, accelerator.device)
    samples = experiment.samples(encoding, CodeCache(directory.code_cache))
    return build_training(experiment, policy, samples[TRAIN], accelerator, group, Interruption(group), [callback])


class _NoCheckpoints:
    """Steps are measured; what a checkpoint costs is no part of them."""

    last_name = None

    def save(self, state: TrainState) -> None:
        """Saves nothing."""

    def restore_last(self) -> TrainState:
        raise AssertionError("a benchmark halts where a step is not finite")


def _backends(runs: Path) -> list[BackendConfig]:
    """All built-in trackers whose packages are installed; nothing leaves this machine."""
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
            continue  # the figure names those that were there
        installed.append(config)
    return installed


class _Delivery:
    """The delivery process of a run, with its children, that can be stopped for a while."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._labels = labels_of(run_dir)
        self._stopped: list[psutil.Process] = []

    def await_everything(self) -> None:
        """Return when each tracker is open and has all records so far."""
        give_up = time.monotonic() + _OPENING_S
        while not (report := delivery_report(self._run_dir, self._labels)).complete:
            if time.monotonic() > give_up:
                errors = [f"{backend.label}: {backend.error}" for backend in report.backends if backend.undelivered]
                raise TrackerError(f"{RunFiles(self._run_dir).delivery_log}: no delivery ({'; '.join(errors)})")
            time.sleep(0.05)

    def stop(self) -> None:
        self._stopped = self._processes()
        for process in self._stopped:
            process.suspend()

    def go_on(self) -> None:
        while self._stopped:
            self._stopped.pop().resume()

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(spent.user + spent.system for spent in times)

    def _processes(self) -> list[psutil.Process]:
        """The process itself first: once it is stopped it gets no new children."""
        process = psutil.Process(int(RunFiles(self._run_dir).delivery_lock.read_text()))
        return [process, *process.children(recursive=True)]


class _TakingTurns(Callback):
    """Switches tracking on and off while a training goes on, and takes the times.

    After the blocks of the start come pairs, on before off and off before on by turns: a slow drift favours neither.
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
            self._delivery.await_everything()
            self._cpu_before_s = self._delivery.cpu_s()
        self._switch()
        self._begin = time.perf_counter()

    def _switch(self) -> None:
        number = self._block - _WARM_UP_BLOCKS
        wanted = number < 0 or number % 4 in (0, 3)
        if wanted != self._is_on:
            (self._delivery.go_on if wanted else self._delivery.stop)()
        self._is_on = wanted
        self._system.go_on()


class _SystemRecords:
    """Records of the system as `SystemSampler` makes them, by a clock that stands still while tracking is off."""

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

    def go_on(self) -> None:
        self._since = time.perf_counter()

    def _record(self) -> None:
        self._tracked.log(self._machine.measure(), step=self._tracked.last_step)

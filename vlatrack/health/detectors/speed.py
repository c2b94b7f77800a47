"""Trainings that wait for data, have become slow, or leave a GPU idle."""

import math
import re
import statistics
from collections import deque
from collections.abc import Iterator

from vlatrack.health.detector import Detector, Streaks, Window, shown, spread
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import DataWait, GpuIdle, Throughput
from vlatrack.metrics.schema import SYSTEM, TRAIN

_WAIT, _TIME, _RATE = (f"{TRAIN}_{name}" for name in ("data_wait_s", "step_time_s", "tokens_per_s"))
_USUAL, _FEWEST = 30, 8
_LEAST_NOISE, _LEAST_RATE = 0.03, 1e-9
_GPU = re.compile(rf"{SYSTEM}gpu_\d+_percent")
_BUSY_PERCENT = 50.0
_MOST_GPUS = 64


class DataWaitDetector(Detector):
    """A large part of each step is spent waiting for data. The first record of a start is left out."""

    name = "data_wait"
    remedy = "more train.workers, the data and the cache of image codes on a local disk, or data.images: store"

    def __init__(self, thresholds: DataWait) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()
        self._is_first = True

    def restart(self) -> None:
        self._is_first = True
        self._streaks.clear()

    def observe(self, window: Window) -> Iterator[Finding]:
        wait, time = window.finite(_WAIT), window.finite(_TIME)
        if wait is None or not time:
            return
        if self._is_first:
            self._is_first = False
            return
        share, most = wait / time, self._thresholds.share
        streak = self._streaks.count(_WAIT, is_wrong=share > most)
        if self._is_news(_WAIT, is_wrong=streak >= self._thresholds.windows, has_recovered=share < most / 2):
            text = f"{share:.0%} of a step's {shown(time)} s are spent waiting for data at step {window.step}"
            yield self._finding(window, _WAIT, wait, text)


class ThroughputDetector(Detector):
    """Training has become slower than it was since it was started on this machine, far beyond its usual variation: on
    a machine that is shared, the speed comes and goes."""

    name = "throughput"
    remedy = "what else runs on this machine, its temperature and clocks (nvidia-smi -q -d PERFORMANCE), and its disk"

    def __init__(self, thresholds: Throughput) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()
        self._rates = deque[float](maxlen=_USUAL)
        self._slow_since = 0
        """Time of the last record of usual speed, Unix milliseconds."""

    def restart(self) -> None:
        self._rates.clear()
        self._streaks.clear()

    def observe(self, window: Window) -> Iterator[Finding]:
        rate = window.finite(_RATE)
        if rate is None:
            return
        if len(self._rates) >= _FEWEST:
            usual, share = statistics.median(self._rates), self._thresholds.share
            noise = max(_LEAST_NOISE, spread([math.log(max(rate, _LEAST_RATE)) for rate in self._rates]))
            is_slow = rate < share * usual and math.log(usual / max(rate, _LEAST_RATE)) > self._thresholds.z * noise
            streak = self._streaks.count(_RATE, is_wrong=is_slow)
            lasts_s = (window.t_ms - self._slow_since) / 1000
            is_wrong = streak >= self._thresholds.windows and lasts_s >= self._thresholds.seconds
            if self._is_news(_RATE, is_wrong=is_wrong, has_recovered=rate > (1 + share) / 2 * usual):
                text = f"{shown(rate)} tokens/s at step {window.step}, {rate / usual:.0%} of the usual {shown(usual)}"
                yield self._finding(window, _RATE, rate, text)
            if streak:
                return  # what is slow does not become usual
        self._rates.append(rate)
        self._slow_since = window.t_ms


class GpuIdleDetector(Detector):
    """A GPU that this run has used stands idle while steps are taken.

    Other GPUs of the machine may be idle as they like; so may this one during an evaluation, when no step is taken.
    """

    name = "gpu_idle"
    remedy = "train.workers if data is waited for, a larger train.micro_batch, and whether a rank has stopped"

    def __init__(self, thresholds: GpuIdle) -> None:
        super().__init__()
        self._thresholds, self._streaks = thresholds, Streaks()
        self._used: set[str] = set()
        self._step: int | None = None

    def restart(self) -> None:
        self._used.clear()
        self._streaks.clear()
        self._step = None

    def observe(self, window: Window) -> Iterator[Finding]:
        loads = {name: load for name, load in window.values.items() if _GPU.fullmatch(name)}
        if not loads:
            return
        is_training, self._step = self._step is not None and window.step > self._step, window.step
        if not is_training:
            return
        for name, load in list(loads.items())[:_MOST_GPUS]:
            if load >= _BUSY_PERCENT:
                self._used.add(name)
            is_idle = name in self._used and load < self._thresholds.percent
            streak = self._streaks.count(name, is_wrong=is_idle)
            if self._is_news(name, is_wrong=streak >= self._thresholds.samples, has_recovered=not is_idle):
                text = f"{name} is {load:.0f} % at step {window.step}, as in the {streak - 1} samples before"
                yield self._finding(window, name, load, text)

"""Load and memory of the machine while a run trains, as metrics in its journal."""

import logging
import shutil
import subprocess
import threading
from types import TracebackType
from typing import Self

import psutil

from vlatrack.metrics.schema import MOST_GPUS, SYSTEM
from vlatrack.tracking.run import TrackedRun

_QUERY = "--query-gpu=utilization.gpu,memory.used,power.draw"
_GPU_METRICS = ("percent", "memory_mib", "power_w")
_ASKING_S = 10.0
_MIB = 1 << 20
_log = logging.getLogger(__name__)


class SystemSampler:
    """Logs a sample every so many seconds, at the training step of the moment, from a thread; None: never.

    Use as `with SystemSampler(tracked, every_s=15):`.
    """

    def __init__(self, tracked: TrackedRun, *, every_s: float | None) -> None:
        self._tracked, self._every_s = tracked, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._every_s is not None:
            self._thread.join()

    def _sample(self) -> None:
        machine = Machine()
        while not self._stopping.wait(self._every_s):
            self._tracked.log(machine.measure(), step=self._tracked.last_step)


class Machine:
    """Measures this machine; the load of the processor is that since the last measurement."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._nvidia_smi = shutil.which("nvidia-smi")
        psutil.cpu_percent()

    def measure(self) -> dict[str, float]:
        """Values by schema name."""
        return {
            f"{SYSTEM}cpu_percent": psutil.cpu_percent(),
            f"{SYSTEM}memory_percent": psutil.virtual_memory().percent,
            f"{SYSTEM}process_memory_mib": self._process.memory_info().rss / _MIB,
            **self._gpus(),
        }

    def _gpus(self) -> dict[str, float]:
        if self._nvidia_smi is None:
            return {}
        ask = [self._nvidia_smi, _QUERY, "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=_ASKING_S).stdout
        except (OSError, subprocess.SubprocessError) as error:
            _log.warning("no GPU metrics: nvidia-smi does not answer (%s)", error)
            self._nvidia_smi = None
            return {}
        return gpu_metrics(answer)


def gpu_metrics(answer: str) -> dict[str, float]:
    """What nvidia-smi prints, a line for each GPU such as `37, 10240, 251.3`; what a GPU does not tell is left out."""
    metrics = {}
    for gpu, line in enumerate(answer.splitlines()[:MOST_GPUS]):
        for name, text in zip(_GPU_METRICS, line.split(","), strict=False):
            if text.strip().replace(".", "", 1).isdigit():
                metrics[f"{SYSTEM}gpu_{gpu}_{name}"] = float(text)
    return metrics

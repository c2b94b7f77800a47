"""One evaluation in a simulator as a process of its own, beside the training that started it.

It is started as ``python -m vlatrack.runner.evaluator LIFELINE JOB`` and ends with the training, however that ends: the
lifeline is a pipe whose other side closes then. It writes its results into the run's folder ``evaluation/``, but not
into the journal, which the training writes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vlatrack.errors import USER_ERROR, VlatrackError
from vlatrack.runner.evaluation_record import EvaluationFiles, EvaluationRecord
from vlatrack.runner.processes import quiet_libraries
from vlatrack.tracking.backends.base import DatasetInput
from vlatrack.tracking.evaluated import Result
from vlatrack.tracking.privacy import open_private, redact, write_private

NICENESS = 5
"""The training comes first: on a busy core it gets three times as much as a process of this niceness."""
ENDING_S = 5.0
"""Seconds in which it may close its simulators."""
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class EvaluatorJob:
    """What is evaluated, and how."""

    checkpoint: str  # its folder
    evaluation: str  # a YAML file
    folder: str  # of the results
    record: str  # the file in which it says what belongs into the journal
    workers: int
    videos: int
    timeout_s: float
    device: Literal["auto", "cpu", "cuda"]


class EvaluatorProcess:
    """The process, as seen by the training."""

    def __init__(self, job: EvaluatorJob, log: Path) -> None:
        """Start it.

        Args:
            log: gets what it prints, behind what is there.
        """
        self.job, self.log = job, log
        read_end, self._lifeline = os.pipe()
        fd = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._log_start = os.fstat(fd).st_size
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        with os.fdopen(fd, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vlatrack.runner.evaluator", str(read_end), json.dumps(asdict(job))],
                env={name: value for name, value in os.environ.items() if not _is_of_launcher(name)}
                | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[read_end],
                process_group=0,  # Ctrl-C is for the training alone
            )
        os.close(read_end)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended, or the time is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def record(self) -> EvaluationRecord:
        """What belongs into the journal, once it has ended well."""
        content = json.loads(Path(self.job.record).read_text(encoding="utf-8"))
        Path(self.job.record).unlink()
        results = [Result(DatasetInput(**result["dataset"]), result["metrics"]) for result in content.pop("results")]
        files = [EvaluationFiles(**{**file, "path": Path(file["path"])}) for file in content.pop("files")]
        return EvaluationRecord(results=results, files=files, **content)

    def reason(self) -> str:
        """Why it has failed, in one line: the last one that it has printed."""
        printed = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        ending = f"exit status {self._process.returncode}"
        return f"{lines[-1]} ({ending})" if lines else ending

    def end(self) -> None:
        """End it, also while it runs; a second call does nothing."""
        if self._lifeline < 0:
            return
        if self._process.poll() is None:
            self._process.terminate()
            self.wait(ENDING_S)
        self._process.kill()
        os.close(self._lifeline)
        self._lifeline = -1
        self._process.wait()


def _is_of_launcher(name: str) -> bool:
    """Whether a variable says which rank this is: an evaluation is no rank."""
    return name in _OF_LAUNCHERS or name.startswith(("TORCHELASTIC_", "ACCELERATE_", "ROLE_", "FSDP_"))


def evaluate(job: EvaluatorJob) -> None:
    """Evaluate, and write down what belongs into the journal.

    Raises:
        VlatrackError: as ``evaluate_in_simulator``.
    """
    from vlatrack.runner.closed_loop import Options, evaluate_in_simulator

    options = Options(
        workers=job.workers,
        videos=job.videos,
        timeout_s=job.timeout_s,
        output=Path(job.folder),
        device=job.device,
        beside_training=True,
    )
    record = evaluate_in_simulator(job.checkpoint, job.evaluation, options=options).record
    assert record is not None, "the folder is in the run"
    write_private(Path(job.record), json.dumps(asdict(record), default=str))


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the other side is closed; nothing is ever written
    os._exit(1)


def _main() -> None:
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    os.nice(NICENESS)
    quiet_libraries()
    try:
        evaluate(EvaluatorJob(**json.loads(sys.argv[2])))
    except VlatrackError as error:
        print(redact(str(error)), file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # Slurm sends them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    _main()

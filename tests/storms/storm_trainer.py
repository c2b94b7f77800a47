"""A training process for the storms: it logs three metrics a step and a file, then ends its run.

Arguments: run directory, uid, backends as JSON, and a `Training` as JSON. SIGUSR1 raises an error wherever it strikes.
"""

import contextlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Literal

import vlatrack
from vlatrack.errors import TrackerError
from vlatrack.testing.odd_names import ODD_NAMES, random_names
from vlatrack.tracking.run import BackendConfig, TrackedRun

NOT_UTF8 = os.fsdecode(b"\xff\xfe.png")
"""A text with lone surrogates, as the name of a file can be."""
ODD_PARAMS = {name or NOT_UTF8: f"{NOT_UTF8} {number}" for number, name in enumerate(ODD_NAMES)}
CHILD_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Training:
    """What the trainer does. `plain`: nothing else. `poison`: it logs names, steps, times and texts that no tracker
    expects, and first ends with a status that there is not. `rough`: a thread logs as well, also while the run ends,
    SIGUSR2 logs and raises inside of vlatrack, and forked children leave the `with` block."""

    steps: int = 600
    pause_s: float = 0.008
    first: int = 0
    timeout_s: float = 180.0
    """How long it waits for the trackers at its end."""
    mode: Literal["plain", "poison", "rough"] = "plain"
    file_mb: float = 0.0
    """The size of the file, at least; it is logged at step `file_at`, counted from the first."""
    file_at: int = 0


class StruckError(RuntimeError):
    """Raised by a signal."""


def train(run: TrackedRun, training: Training, log: Callable[[int], object]) -> None:
    """The loop of all modes."""
    for step in range(training.first, training.first + training.steps):
        if step == training.first + training.file_at:
            log_file(run, training.file_mb)
        log(step)
        time.sleep(training.pause_s)


def log_file(run: TrackedRun, megabytes: float) -> None:
    line = f"of {run.path.name}\n"
    note = run.path / "note.txt"
    note.write_text(line * (1 + int(megabytes * 1e6) // len(line)))
    run.log_artifact(note, name="note.txt")


def log_values(run: TrackedRun, step: int) -> None:
    run.log({"train_closs": step / 3, "train_z_loss": step / 7, "train_loss_ct": -step / 9}, step=step)


def train_on_poison(run: TrackedRun, training: Training) -> None:
    names = [*ODD_NAMES, *random_names(200), NOT_UTF8, f"a/{NOT_UTF8}"]

    def log(step: int) -> None:
        log_values(run, step)
        run.log({names[step % len(names)]: step / 11}, step=step)
        if step % 50 == 0:
            run.log({"at a step beyond": step / 13}, step=2**63)
            run.log({"at no time": step / 17}, step=step, t_ms=math.nan)  # type: ignore[arg-type]
            run.log({"at noon": step / 19}, step=step, t_ms="noon")  # type: ignore[arg-type]
            run.log({"no number": NOT_UTF8, "beside it": step / 23}, step=step)  # type: ignore[dict-item]
        if step % 200 == 0:
            run.event(f"lost {NOT_UTF8}", {NOT_UTF8: NOT_UTF8}, alert=True)

    train(run, training, log)
    try:
        run.finish("DONE")  # type: ignore[arg-type]
    except TrackerError:
        return
    raise AssertionError("a run cannot end as DONE")


def train_roughly(run: TrackedRun, training: Training) -> None:
    def log(step: int) -> None:
        with contextlib.suppress(StruckError):
            log_values(run, step)
        if step % 150 == 75:
            fork_a_child_that_leaves(well=step % 300 == 75)

    with logging_thread(run), struck_by_signals(run):
        train(run, training, log)
        is_over = False
        while not is_over:
            with contextlib.suppress(StruckError):
                run.finish("FINISHED", timeout_s=training.timeout_s)
                is_over = True


@contextlib.contextmanager
def logging_thread(run: TrackedRun) -> Iterator[None]:
    """A thread that logs at about 1 kHz until the block ends; a forked child has no such thread."""
    stopping, trainer = threading.Event(), os.getpid()

    def log() -> None:
        for number in itertools.count():
            if stopping.wait(0.001):
                return
            run.log({"threaded": number / 3}, step=number)

    thread = threading.Thread(target=log)
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == trainer:
            stopping.set()
            thread.join()


@contextlib.contextmanager
def struck_by_signals(run: TrackedRun) -> Iterator[None]:
    """SIGUSR2 logs, and half the time raises where it has interrupted vlatrack."""
    rng, numbers, is_handling = Random(run.run_id), itertools.count(), False

    def strike(signal_number: int, frame: FrameType | None) -> None:
        nonlocal is_handling
        if is_handling:
            return
        is_handling = True
        run.log({"signalled": next(numbers) / 3}, step=0)
        is_handling = False
        if is_inside_vlatrack(frame) and rng.random() < 0.5:
            raise StruckError

    signal.signal(signal.SIGUSR2, strike)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def is_inside_vlatrack(frame: FrameType | None) -> bool:
    package = str(Path(vlatrack.__file__).parent)
    while frame is not None and not frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
    return frame is not None


def fork_a_child_that_leaves(*, well: bool) -> None:
    """A child that leaves the `with` block of the run, with or without an error, and has to be gone soon."""
    child = os.fork()
    if child == 0:
        sys.exit(0 if well else "struck")
    give_up = time.monotonic() + CHILD_PATIENCE_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > give_up:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("a forked child does not leave the run")
        time.sleep(0.01)


def main(run_dir: Path, uid: str, backends: list[BackendConfig], training: Training) -> None:
    with TrackedRun.start(
        run_dir,
        uid=uid,
        name=NOT_UTF8 if training.mode == "poison" else uid,
        experiment=run_dir.parent.name,
        backends=backends,
        params={"epochs": 1} | (ODD_PARAMS if training.mode == "poison" else {}),
        tags={"vlatrack.commit": "abc"},
        resume=True,
        resume_step=training.first or None,
    ) as run:
        match training.mode:
            case "plain":
                train(run, training, lambda step: log_values(run, step))
            case "poison":
                train_on_poison(run, training)
            case "rough":
                train_roughly(run, training)
        run.finish("FINISHED", timeout_s=training.timeout_s)


def _fail(*_: object) -> None:
    raise RuntimeError("struck")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _fail)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    where, identity, trackers, what = sys.argv[1:]
    configs = [BackendConfig(**fields) for fields in json.loads(trackers)]
    main(Path(where), identity, configs, Training(**json.loads(what)))

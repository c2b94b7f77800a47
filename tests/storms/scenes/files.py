"""The files of a run are damaged, and the disk that they lie on is full."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from mlflow_server import wait_until
from scene import Moments
from storm_rig import StormRun
from storm_trainer import Training


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
    run.train(Training(steps=150, first=600))


def _cursor_paths(run: StormRun) -> list[Path]:
    return [path for path in run.files.delivery.glob("*-?.json") if not path.name.startswith(".")]


def _change_cursors(run: StormRun, at: Moments, change: Callable[[Path], object]) -> None:
    wait_until(lambda: len(_cursor_paths(run)) == len(run.cursors) or run.has_ended(), "cursors")
    at.pause(3)
    run.kill_delivery()
    for path in _cursor_paths(run):
        change(path)

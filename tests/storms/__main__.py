"""`python tests/storms [--storms N] [--workers N] [--only WORD …]`: rage, and print what each kind of storm cost."""

import argparse
import contextlib
import queue
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from evaluation_storm import EVALUATIONS, EvaluationScene
from oracle import Outcome
from scene import CannotRageHereError, Scene, rage
from scenes import SCENES
from storm_rig import Rig, open_rig

COLUMNS = {
    "rows": "rows",
    "lost": "lost",
    "duplicated": "duplicated",
    "files_lost": "files lost",
    "wrong_ends": "wrong ends",
    "blocked": "blocked",
}
NOT_DONE = Outcome(0, 0, 0, 0, 1)
"""Of a storm that did not come to its end: it counts as a run that ended wrongly."""


def main() -> int:
    """0 if every storm was clean, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storms", type=int, default=20, help="storms of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first storm")
    parser.add_argument("--workers", type=int, default=2, help="storms at the same time, each with its own servers")
    parser.add_argument("--only", nargs="*", default=[""], help="kinds whose names have one of these words")
    parser.add_argument("--locked", type=float, default=30.0, help="seconds that SQLite is locked")
    parser.add_argument("--kills", type=int, default=2, help="in each storm over an evaluation")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the ends of what was started
    scenes = [scene for scene in (*SCENES, *EVALUATIONS) if any(word in scene.name for word in wanted.only)]
    seeds = range(wanted.first, wanted.first + wanted.storms)
    print(_line("storm", ["storms", *COLUMNS.values(), "s"]), flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="storms-") as folder,
        _rigs(Path(folder), wanted.workers) as rigs,
        ThreadPoolExecutor(wanted.workers) as workers,
    ):
        raging = [(scene, [workers.submit(_storm, scene, seed, rigs, wanted) for seed in seeds]) for scene in scenes]
        try:
            clean = [_row(scene, storms) for scene, storms in raging]
        finally:
            workers.shutdown(cancel_futures=True)
    return 0 if all(clean) else 1


@contextlib.contextmanager
def _rigs(folder: Path, number: int) -> Iterator["queue.Queue[Rig]"]:
    with contextlib.ExitStack() as opened:
        free: queue.Queue[Rig] = queue.Queue()
        for index in range(number):
            (folder / str(index)).mkdir()
            free.put(opened.enter_context(open_rig(folder / str(index))))
        yield free


def _storm(
    scene: Scene | EvaluationScene, seed: int, rigs: "queue.Queue[Rig]", wanted: argparse.Namespace
) -> tuple[Outcome, float]:
    """One storm on a free rig, and the seconds that it took."""
    rig, begin = rigs.get(), time.monotonic()
    try:
        if isinstance(scene, EvaluationScene):
            outcome = scene.rage(rig.folder, seed, kills=wanted.kills)
        else:
            outcome = rage(scene, rig, seed, sqlite_locked_s=wanted.locked)
    except CannotRageHereError:
        raise
    except Exception:  # the others go on; the table shows that this one did not end
        print(f"  {scene.name}, seed {seed}:\n{traceback.format_exc()}", flush=True)
        outcome = NOT_DONE
    finally:
        rigs.put(rig)
    if not outcome.clean:
        print(f"  {scene.name}, seed {seed}: {outcome}", flush=True)
    return outcome, time.monotonic() - begin


def _row(scene: Scene | EvaluationScene, storms: "list[Future[tuple[Outcome, float]]]") -> bool:
    """Print the row of one kind when all its storms are over; whether all were clean."""
    try:
        ended = [storm.result() for storm in storms]
    except CannotRageHereError as reason:
        print(f"{scene.name:40} skipped: {reason}", flush=True)
        return True
    sums = [sum(getattr(outcome, field) for outcome, _ in ended) for field in COLUMNS]
    print(_line(scene.name, [len(ended), *sums, round(sum(seconds for _, seconds in ended))]), flush=True)
    return all(outcome.clean for outcome, _ in ended)


def _line(name: str, cells: "list[str] | list[int]") -> str:
    return f"{name:40}" + "".join(f"{cell:>11}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())

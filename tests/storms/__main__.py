"""`python tests/storms [--storms N] [--only WORD …]`: rage, and print what each kind of storm lost or duplicated."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))

from scenes import SCENES, CannotRageHereError, Scene, rage
from storm_rig import Outcome, Rig, open_rig

HEAD = f"{'storm':38} {'storms':>6} {'rows':>8} {'lost':>6} {'duplicated':>10} {'wrong ends':>10} {'s':>6}"


def main() -> int:
    """0 if every storm was clean, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storms", type=int, default=20, help="storms of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first storm")
    parser.add_argument("--only", nargs="*", default=[""], help="kinds whose names have one of these words")
    parser.add_argument("--locked", type=float, default=30.0, help="seconds that SQLite is locked")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the ends of what was started
    print(HEAD, flush=True)
    clean = True
    with tempfile.TemporaryDirectory(prefix="storms-") as folder, open_rig(Path(folder)) as rig:
        for scene in SCENES:
            if any(word in scene.name for word in wanted.only):
                clean &= _row(scene, rig, range(wanted.first, wanted.first + wanted.storms), wanted.locked)
    return 0 if clean else 1


def _row(scene: Scene, rig: Rig, seeds: range, locked_s: float) -> bool:
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    for seed in seeds:
        try:
            outcome = rage(scene, rig, seed, sqlite_locked_s=locked_s)
        except CannotRageHereError as reason:
            print(f"{scene.name:38} skipped: {reason}", flush=True)
            return True
        outcomes.append(outcome)
        if not outcome.clean:
            print(f"  seed {seed}: {outcome}", flush=True)
    sums = [sum(getattr(o, field) for o in outcomes) for field in ("rows", "lost", "duplicated", "wrong_ends")]
    rows, lost, duplicated, wrong = sums
    took = time.monotonic() - begin
    print(
        f"{scene.name:38} {len(outcomes):6} {rows:8} {lost:6} {duplicated:10} {wrong:10} {took:6.0f}",
        flush=True,
    )
    return all(outcome.clean for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())

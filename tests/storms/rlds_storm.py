"""`python tests/storms/rlds_storm.py [--trials N]`: damage an RLDS dataset at random, and count what is told in one
line, what changes nothing, and what is neither."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

from rlds_damage import outcome, whole_dataset  # noqa: E402

GOOD = ("told", "nothing changed")


def main() -> int:
    """0 if every trial was told or changed nothing, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    wanted = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="storms-") as folder:
        whole = whole_dataset(Path(folder, "whole"))
        for seed in range(wanted.first, wanted.first + wanted.trials):
            found = outcome(whole, Path(folder, "damaged"), seed)
            total[found] += 1
            if found not in GOOD:
                print(f"rlds {found}", flush=True)
    print("rlds      ", ", ".join(f"{total[name]} {name}" for name in GOOD), flush=True)
    return 0 if set(total) <= set(GOOD) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`python tests/storms/lerobot_storm.py [--trials N] [--only WORD …]`: damage each kind of file of LeRobot datasets at
random, and count what is told in one line, and what escapes, ends the process, takes too long or too much memory."""

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

from lerobot_damage import victims  # noqa: E402

MEMORY = 4 << 30
"""Bytes of address space of a process that reads."""
MOST_GROWTH = 256 << 10
"""Kilobytes by which the memory of that process may grow in one trial."""
TRIAL_S = 30
GOOD = ("told", "unharmed", "unseen")
COLUMNS = (*GOOD, "escaped", "memory", "ended")


def main() -> int:
    """0 if every trial came to its end with one line or none, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--only", nargs="*", default=[""], help="kinds whose names have one of these words")
    parser.add_argument("--victim", type=int, help=argparse.SUPPRESS)  # in the process that reads
    wanted = parser.parse_args()
    if wanted.victim is not None:
        return _read(wanted.victim, wanted.first, wanted.trials)
    with tempfile.TemporaryDirectory(prefix="storms-") as folder:
        known = victims(Path(folder))
    print(f"{'file':26}" + "".join(f"{column:>10}" for column in COLUMNS), flush=True)
    clean = True
    for number, victim in enumerate(known):
        if any(word in victim.name for word in wanted.only):
            total = _storm(number, victim.name, wanted.first, wanted.trials)
            print(f"{victim.name:26}" + "".join(f"{total[column]:>10}" for column in COLUMNS), flush=True)
            good = sum(total[outcome] for outcome in GOOD) - total["unseen"] * victim.has_checksums
            clean = clean and good == wanted.trials
    return 0 if clean else 1


def _storm(number: int, name: str, first: int, trials: int) -> Counter[str]:
    """Read in a process of its own; one that ends is replaced, from the next seed on."""
    total: Counter[str] = Counter()
    seed, end = first, first + trials
    while seed < end:
        words = [sys.executable, __file__, "--victim", str(number), "--first", str(seed), "--trials", str(end - seed)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None, "a pipe"
            for line in reader.stdout:
                told_seed, outcome = line.rstrip("\n").split(" ", 1)
                seed = int(told_seed) + 1
                total[outcome.split(" ", 1)[0]] += 1
                if not outcome.startswith(GOOD):
                    print(f"  {name}, seed {line}", end="", flush=True)
        if seed < end:
            total["ended"] += 1
            print(f"  {name}, seed {seed}: ended with {reader.returncode}", flush=True)
            seed += 1
    return total


def _read(number: int, first: int, trials: int) -> int:
    """Print what came of each seed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="storms-") as folder:
        victim = victims(Path(folder))[number]
        assert victim.content, "read before anything is damaged"
        for seed in range(first, first + trials):
            signal.alarm(TRIAL_S)  # ends a process that hangs
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                outcome: str = victim.damage(seed)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome = f"escaped {type(error).__name__} {place.filename}:{place.lineno} {error}"
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > MOST_GROWTH:
                outcome = f"memory {grown >> 10} MiB"
            print(seed, " ".join(outcome.split()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

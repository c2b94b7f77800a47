"""`python tests/storms/hdf5_storm.py [--trials N]`: damage HDF5 files at random, and count what escapes as anything but
one line, ends the process, takes too long or too much memory."""

import argparse
import resource
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

from hdf5_damage import try_seed  # noqa: E402
from robomimic_file import write_robomimic  # noqa: E402

from vlatrack.data.formats.hdf5.demonstrations import Hdf5Demonstrations  # noqa: E402
from vlatrack.data.formats.libero import LiberoDataset  # noqa: E402
from vlatrack.data.formats.robomimic import RobomimicDataset  # noqa: E402

MEMORY = 4 << 30
"""Bytes of address space of a process that reads."""
MOST_GROWTH = 256 << 10
"""Kilobytes by which the memory of that process may grow in one trial."""
TRIAL_S = 20.0
LAYOUTS: dict[str, Callable[[Path], Hdf5Demonstrations]] = {"libero": LiberoDataset, "robomimic": RobomimicDataset}


def main() -> int:
    """0 if every trial came to its end with one line or none, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of each layout")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)  # in the process that reads
    wanted = parser.parse_args()
    if wanted.layout:
        return _read(wanted.layout, wanted.first, wanted.trials)
    totals = [_storm(layout, wanted.first, wanted.trials) for layout in LAYOUTS]
    return 0 if all(total["ok"] + total["told"] == wanted.trials for total in totals) else 1


def _storm(layout: str, first: int, trials: int) -> Counter[str]:
    """Read in a process of its own; one that ends is replaced, from the next seed on."""
    total: Counter[str] = Counter()
    seed, end = first, first + trials
    while seed < end:
        words = [sys.executable, __file__, "--layout", layout, "--first", str(seed), "--trials", str(end - seed)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None, "a pipe"
            for line in reader.stdout:
                number, outcome = line.rstrip("\n").split(" ", 1)
                seed = int(number) + 1
                total[outcome.split(" ", 1)[0]] += 1
                if not outcome.startswith(("ok", "told")):
                    print(f"{layout} {line}", end="", flush=True)
        if seed < end:
            total["ended"] += 1
            print(f"{layout} {seed} ended with {reader.returncode}", flush=True)
            seed += 1
    print(f"{layout}: {trials} trials: {', '.join(f'{count} {outcome}' for outcome, count in total.items())}")
    return total


def _read(layout: str, first: int, trials: int) -> int:
    """Print what came of each seed."""
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        original = next((TESTS / "data" / "fixtures" / "libero-hdf5").glob("*.hdf5"))
        if layout == "robomimic":
            original = write_robomimic(Path(folder) / "original.hdf5")
        for seed in range(first, first + trials):
            signal.setitimer(signal.ITIMER_REAL, TRIAL_S)  # SIGALRM ends a process that hangs
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                found = try_seed(original.read_bytes(), Path(folder, "damaged.hdf5"), seed, LAYOUTS[layout])
                outcome = f"told {found.told[0]}" if found.told else "ok"
            except Exception as error:
                outcome = f"escaped {type(error).__name__} {traceback.extract_tb(error.__traceback__)[-1]}"
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > MOST_GROWTH:
                outcome = f"memory {grown >> 10} MiB"
            print(seed, " ".join(outcome.split()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A training process for the tests: it logs the curves of a real run with a spike in them, and waits to be killed.
Argument: run directory."""

import sys
import time
from pathlib import Path

from health_curves import curves, planted

from vlatrack.health.thresholds import Thresholds
from vlatrack.tracking.run import TrackedRun


def spike(since: int, values: dict[str, float]) -> None:
    if since == 0:
        values["train_closs"] *= 8


if __name__ == "__main__":
    run = TrackedRun.start(
        Path(sys.argv[1]),
        uid="u1",
        name="watched",
        experiment="exp",
        backends=[],
        params={},
        tags={},
        health=Thresholds(),
    )
    for line in planted(curves("quickstart-0"), spike, at=14):
        run.log(line.values, step=line.step)
    time.sleep(600)

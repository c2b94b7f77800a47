"""A training process for the tests: it logs until it is killed. Arguments: run directory, backends as JSON."""

import json
import sys
import time
from pathlib import Path

from vlatrack.tracking.run import BackendConfig, TrackedRun

if __name__ == "__main__":
    backends = [BackendConfig(**fields) for fields in json.loads(sys.argv[2])]
    run = TrackedRun.start(
        Path(sys.argv[1]), uid="u1", name="endless", experiment="exp", backends=backends, params={"epochs": 1}, tags={}
    )
    for step in range(100_000):
        run.log({"train_closs": 1 / (step + 1)}, step=step)
        if step == 50:
            print("logging", flush=True)
        time.sleep(0.01)

"""A training process for the storms: it logs three metrics a step, then ends its run.

Arguments: run directory, uid, backends as JSON, steps, seconds between two steps. Prints the number of lost records.
"""

import json
import sys
import time
from pathlib import Path

from vlatrack.tracking.run import BackendConfig, TrackedRun

if __name__ == "__main__":
    run_dir, uid, backends, steps, pause = sys.argv[1:]
    run = TrackedRun.start(
        Path(run_dir),
        uid=uid,
        name=uid,
        experiment=Path(run_dir).parent.name,
        backends=[BackendConfig(**fields) for fields in json.loads(backends)],
        params={"epochs": 1},
        tags={"vlatrack.commit": "abc"},
        resume=True,
    )
    for step in range(int(steps)):
        run.log({"train_closs": step / 3, "train_z_loss": step / 7, "train_loss_ct": -step / 9}, step=step)
        time.sleep(float(pause))
    print(run.finish("FINISHED", timeout_s=180).lost)

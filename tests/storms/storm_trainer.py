"""A training process for the storms: it logs three metrics a step and a file, then ends its run.

Arguments: run directory, uid, backends as JSON, first step, steps, seconds between two steps, seconds to wait for the
trackers at the end. SIGUSR1 raises an error wherever it strikes. Prints the number of lost records.
"""

import json
import signal
import sys
import time
from pathlib import Path

from vlatrack.tracking.run import BackendConfig, TrackedRun


def _fail(*_: object) -> None:
    raise RuntimeError("struck")


if __name__ == "__main__":
    run_dir, uid, backends, first, steps, pause, timeout = sys.argv[1:]
    signal.signal(signal.SIGUSR1, _fail)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    with TrackedRun.start(
        Path(run_dir),
        uid=uid,
        name=uid,
        experiment=Path(run_dir).parent.name,
        backends=[BackendConfig(**fields) for fields in json.loads(backends)],
        params={"epochs": 1},
        tags={"vlatrack.commit": "abc"},
        resume=True,
        resume_step=int(first) or None,
    ) as run:
        note = Path(run_dir) / "note.txt"
        note.write_text(f"of {uid}\n")
        run.log_artifact(note, name="note.txt")
        for step in range(int(first), int(first) + int(steps)):
            run.log({"train_closs": step / 3, "train_z_loss": step / 7, "train_loss_ct": -step / 9}, step=step)
            time.sleep(float(pause))
        print(run.finish("FINISHED", timeout_s=float(timeout)).lost)

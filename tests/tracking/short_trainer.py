"""A whole small run for the tests: a metric, a file, a checkpoint, an alert. Arguments: run directory, backends as
JSON."""

import json
import sys
from pathlib import Path

from vlatrack.tracking.run import BackendConfig, DatasetInput, TrackedRun

if __name__ == "__main__":
    run_dir = Path(sys.argv[1])
    backends = [BackendConfig(**fields) for fields in json.loads(sys.argv[2])]
    data = [DatasetInput("demo", '{"path": "data/demo"}', "ab" * 32, "train")]
    with TrackedRun.start(
        run_dir,
        uid="u1",
        name="short",
        experiment="exp",
        backends=backends,
        params={"epochs": 1},
        tags={"vlatrack.commit": "abc"},
        datasets=data,
    ) as run:
        for step in range(20):
            run.log({"train_closs": 1 / (step + 1)}, step=step)
        (run_dir / "spec.yaml").write_text("a: 1\n")
        run.log_artifact(run_dir / "spec.yaml", name="spec.yaml")
        run.event("checkpoint", {"step": 19, "epoch": 1, "name": "step-00000019"})
        run.event("health", {"step": 19}, alert=True)
        report = run.finish("FINISHED")
    sys.exit(0 if report.complete else f"not delivered: {report}")

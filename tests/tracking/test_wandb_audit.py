"""What W&B's public API says of a run, beside the journal."""

import json
from pathlib import Path

import pytest
import wandb
from wandb_double import WandbDouble

from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig, RunFinish
from vlatrack.tracking.backends.registry import backends_text, connect
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.run_files import RunFiles


@pytest.mark.parametrize("naming", ["documented", "sections"])
def test_the_audit_reads_every_value_in_pages_and_sees_what_is_missing(
    tmp_path: Path, wandb_server: WandbDouble, naming: str
) -> None:
    run, config = ExampleRun(tmp_path), BackendConfig("wandb", naming=naming)
    RunFiles(run.dir).backends.write_text(backends_text([config]))
    run.log(2500)
    run.finish("FINISHED")
    backend = connect(config, run.dir)
    backend.open(run.start_value(), -1)
    backend.deliver(run.metrics())
    backend.finish(RunFinish.of(run.records()[-1]))
    (audit,) = audit_run(run.dir, ["wandb-0"])
    assert (audit.differences, audit.backend) == ((), audit.journal)
    assert (audit.backend.metric_keys, audit.backend.values, audit.backend.last_seq) == (2, 5000, 2500)
    assert wandb_server.operations["HistoryPage"] == 3
    history = wandb_server.runs[run.uid].history
    row = json.loads(history[1200])
    del row["train_loss_ct" if naming == "documented" else "train/loss_ct"]
    history[1200] = json.dumps(row)
    (audit,) = audit_run(run.dir, ["wandb-0"])
    wandb.teardown()
    assert audit.differences == ("values: 5000 here, 4999 there", "1 missing: train_loss_ct at step 1200")

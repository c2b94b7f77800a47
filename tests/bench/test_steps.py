"""What `vlatrack bench tracking` says of the training step, on the toy training."""

import math
from pathlib import Path

import pytest
from program import TOY

from vlatrack.bench.steps import RECORDS_PER_BLOCK, StepTime, measure_step_time
from vlatrack.tracking.delivery.report import delivery_report, labels_of
from vlatrack.tracking.journal.records import Kind, read_records


def test_the_ratio_compares_blocks_that_stand_side_by_side() -> None:
    drifting = (0.1, 0.2, 0.4, 0.1)
    speed = StepTime(("mlflow",), 10, tuple(1.02 * s for s in drifting), drifting, delivery_cpu_s=0.0816)
    assert speed.ratio == pytest.approx(1.02)
    assert speed.interval == pytest.approx((1.02, 1.02))
    assert speed.delivery_load == pytest.approx(0.01)


@pytest.mark.slow
def test_steps_are_timed_with_tracking_on_and_off_and_only_the_first_are_tracked(tmp_path: Path) -> None:
    speed = measure_step_time(TOY, tmp_path / "runs", 2)
    assert speed.trackers == ("mlflow", "wandb", "tensorboard")
    assert len(speed.on_s) == len(speed.off_s) == 2
    low, high = speed.interval
    assert 0 < low <= speed.ratio <= high < math.inf
    (journal,) = (tmp_path / "runs").glob("*/*/journal.jsonl")
    run = journal.parent
    records = [r for r in read_records(journal) if r.kind == Kind.METRICS and "epoch" in r.data]
    blocks = [(record.step - 1) // speed.steps for record in records if record.step is not None]
    assert blocks == [block for block in (0, 1, 2, 5) for _ in range(RECORDS_PER_BLOCK)]  # then off, off
    assert delivery_report(run, labels_of(run)).complete

"""A training on a mixture, interrupted and resumed."""

import json
from pathlib import Path

import pytest
from program import TOY

from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec

TOYS = "kind: custom, target: 'toy_source:ToySource'"
SETTINGS = (
    f"data.train={{kind: mixture, sources: [{{{TOYS}, tasks: [push the square], weight: 1}}, "
    f"{{{TOYS}, tasks: [pull the square], weight: 2, options: {{shift: 0.1}}, actions: {{scale: {{0: 0.5}}}}}}]}}",
    "data.val_ind=null",
    "data.val_ood=null",
    "train.epochs=2",
    "evaluate.open_loop=null",
    "tracking.log_every=1",
    "train.checkpoint.best_metric=train_loss",
)


def losses_of(run: Path) -> dict[int, float]:
    """The training loss of each step, as the journal has it in the end."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return {r["step"]: r["data"]["train_loss"] for r in records if r["kind"] == "metrics" and "train_loss" in r["data"]}


@pytest.mark.slow
def test_a_mixture_goes_on_with_another_number_of_workers_where_it_was(tmp_path: Path) -> None:
    whole = run_experiment(load_spec(TOY, SETTINGS), runs=tmp_path / "whole").path
    expected = losses_of(whole)
    steps = max(expected) // 2
    ends = f"train.max_steps={steps + 3}"  # inside the second epoch, in the middle of a pass of both datasets
    part = run_experiment(load_spec(TOY, (*SETTINGS, ends)), runs=tmp_path / "part").path
    resume_run(part, overrides=["train.max_steps=null", "train.workers=2"])
    assert losses_of(part) == expected
    assert len(expected) == 2 * steps

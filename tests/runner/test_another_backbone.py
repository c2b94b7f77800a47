"""The same experiment on another backbone."""

import json

import pytest
from program import TOY

from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_two_changed_lines_train_another_backbone_and_its_losses_fall(tmp_path, family) -> None:
    spec = load_spec(TOY, ["backbone.kind=causal_lm", f"backbone.family={family}"])
    run = run_experiment(spec, runs=tmp_path)
    epochs = [json.loads(line) for line in run.log_files["train"].read_text().splitlines()]
    assert len(epochs) == spec.train.epochs
    for name in ("train_closs", "train_loss_ct", "train_loss"):
        assert epochs[-1][name] < 0.85 * epochs[0][name], name

"""CONTRIBUTING's "Adding a metric", followed to the letter on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

# Two chunks of one step and two numbers: ids that are right, one bin off, far off, and of logits that are not finite.
PROBE = """
import json
import numpy as np
import torch
from vlatrack.metrics.declarations import split_metrics
from vlatrack.metrics.losses import DOCUMENTED_LOSSES
from vlatrack.metrics.metric import metric_values
from vlatrack.metrics.schema import MetricSchema
from vlatrack.models.losses.base import LossInputs
from vlatrack.models.token_metrics import token_metric_states
from vlatrack.tokens.batch import index_rows
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout

labels = np.array([[-100, 10004, 10100, 10200, 15004]] * 2)
batch = index_rows(np.abs(labels), labels, TokenLayout())
zeros = torch.zeros(len(batch.targets))
values = []
for infinite in (0.0, float("nan")):
    inputs = LossInputs(
        batch=batch, nll=zeros, logsumexp=zeros + infinite, hidden=zeros, actions=None,
        predicted=torch.tensor([10004, 10100, 10201, 15004, 10004, 10099, 10400, 15004]),
        label_actions=torch.zeros(2, 1, 2),
    )
    states = token_metric_states(inputs, TokenLayout(), torch.from_numpy(Bins().centres).float())
    metrics = split_metrics(horizon=1, action_dim=2, image_slots=10, losses=DOCUMENTED_LOSSES)
    values.append(metric_values(metrics, states)["acc_near"])
declared = MetricSchema.for_experiment(horizon=1, action_dim=2)["val_ind_acc_near"]
print(json.dumps([declared.meaning, declared.direction, *values]))
"""


def _insert(file: Path, block: str, *, below: str, indent: int) -> None:
    text = file.read_text()
    assert text.count(below) == 1
    file.write_text(text.replace(below, below + textwrap.indent(textwrap.dedent(block), " " * indent)))


def test_the_two_blocks_of_the_recipe_add_a_metric(tmp_path: Path) -> None:
    (section,) = re.findall(r"^## Adding a metric\n(.*?)^## ", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    declaration, state = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    shutil.copytree(ROOT / "vlatrack", tmp_path / "vlatrack", ignore=shutil.ignore_patterns("__pycache__"))
    declarations = tmp_path / "vlatrack" / "metrics" / "declarations.py"
    _insert(declarations, declaration, below='    l1, acc = "l1_loss_action", "acc_action"\n', indent=4)
    token_metrics = tmp_path / "vlatrack" / "models" / "token_metrics.py"
    _insert(token_metrics, state, below='        states["acc_action"] = hits[index].sum(0), rows\n', indent=8)

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    meaning, direction, near, of_nan_logits = json.loads(done.stdout)
    assert meaning == "share of action tokens whose most probable id is at most one bin off"
    assert direction == "higher"
    assert near == 3 / 4
    assert of_nan_logits != of_nan_logits

"""The loss term of docs/write-a-loss-term.md: what it computes, what training on it does, and what is logged."""

import json

import pytest
import torch
import yaml
from program import TOY, Program
from recipes import files_of, module_of, write_files

from vlatrack.models.losses.base import LossTerm
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout

PAGE = "write-a-loss-term.md"


@pytest.fixture
def smoothness() -> LossTerm:
    term: LossTerm = module_of(PAGE, "my_terms.py").ChunkSmoothness(weight=0.1)
    return term


def test_the_example_is_the_mean_squared_second_difference(make_policy, rows, smoothness) -> None:
    policy, batch = make_policy(own=[smoothness]), collate(rows, TokenLayout())
    output = policy(batch)
    actions = output.actions
    expected = (actions[:, 2:] - 2 * actions[:, 1:-1] + actions[:, :-2]).square().mean().item()
    values = policy.metric_values(output.states)
    assert values["smoothness"] == pytest.approx(expected)
    assert values["weighted_smoothness"] == pytest.approx(0.1 * expected)
    policy.loss(output, policy.loss_counts(batch)).backward()
    assert policy.action_head.queries.grad is not None


def test_training_on_the_example_makes_chunks_smoother(make_policy, rows, smoothness) -> None:
    smoothness.weight = 10.0
    policy, batch = make_policy(own=[smoothness], loss_ct_weights=0.0), collate(rows, TokenLayout())
    optimizer = torch.optim.SGD(policy.parameters(), lr=3e-3)
    measured = []
    for _ in range(10):
        output = policy(batch)
        policy.loss(output, policy.loss_counts(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        measured.append(policy.metric_values(output.states)["smoothness"])
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 0.5 * measured[0]


@pytest.mark.slow
def test_a_run_with_the_example_logs_it_raw_and_weighted_on_every_split(program: Program, journal_of) -> None:
    write_files(PAGE, program.folder)
    experiment = yaml.safe_load(TOY.read_text()) | yaml.safe_load(files_of(PAGE)["smooth.yaml"])
    (program.folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    done = program.run("run", "experiment.yaml", "train.epochs=1", "train.max_steps=8")
    assert done.returncode == 0, done.stderr
    records = [record["data"] for record in journal_of(program.only_run()) if record["kind"] == "metrics"]
    for split in ("train", "val_ind", "val_ood"):
        (*_, last) = [data for data in records if f"{split}_smoothness" in data]
        assert last[f"{split}_smoothness"] > 0
        assert last[f"{split}_weighted_smoothness"] == pytest.approx(0.1 * last[f"{split}_smoothness"])
        parts = [last[f"{split}_{name}"] for name in ("closs", "weighted_loss_ct", "weighted_z_loss")]
        assert last[f"{split}_loss"] == pytest.approx(sum(parts) + last[f"{split}_weighted_smoothness"])
    logged = json.loads((program.only_run() / "log_train.txt").read_text())
    assert "train_weighted_smoothness" in logged

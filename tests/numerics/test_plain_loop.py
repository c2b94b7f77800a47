"""The training engine takes the steps of a plain loop in PyTorch that knows nothing of it."""

import math
from pathlib import Path

import pytest
import torch
from program import TOY
from torch.nn import functional

from vlatrack.builders.experiment import Experiment
from vlatrack.data.order import epoch_order
from vlatrack.data.store.token_store import TokenStore
from vlatrack.models.attention import attention_mask
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.run import run_experiment
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_spec
from vlatrack.tokens.batch import Batch, collate
from vlatrack.training.callback import Callback
from vlatrack.training.state import TrainState

WORDS = (
    "backbone.residual_dropout=0 action_head.dropout=0 train.micro_batch=null train.epochs=1 tracking.log_every=1 "
    "evaluate.open_loop=null"
).split()
STEPS = 12


class Losses(Callback):
    """Collects the losses that the engine logs."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float, float]] = []

    def on_log(self, state: TrainState, metrics: dict[str, float]) -> None:
        names = ("train_loss", "train_closs", "train_loss_ct", "train_grad_norm")
        if "train_loss" in metrics:
            self.found.append(tuple(metrics[name] for name in names))  # type: ignore[arg-type]


def plain_losses(policy: VlaPolicy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss, closs and loss_ct as the document of the losses defines them, from logits at all positions."""
    hidden = policy.backbone(batch.input_ids, attention_mask(batch.input_ids, policy.layout))
    logits = (hidden @ policy.backbone.output_layer.t()).flatten(0, 1)[batch.supervised]
    closs = functional.cross_entropy(logits, batch.targets)
    z_loss = logits.logsumexp(dim=1).square().mean()
    loss_ct = closs.new_zeros(())
    if len(batch.action_rows):
        predicted = policy.action_head(hidden[batch.action_rows, : batch.longest_prompt], batch.prompt_lengths)
        bins = (batch.targets[batch.action_index] - policy.layout.action_start - 2).clamp(0, len(policy.centres) - 1)
        loss_ct = (predicted - policy.centres[bins]).abs().mean()
    return closs + 10 * loss_ct + 1e-5 * z_loss, closs, loss_ct


def plain_loop(spec: ExperimentSpec, folder: Path) -> list[tuple[float, float, float, float]]:
    experiment, optim, found = Experiment.new(spec, store=TokenStore(folder / "data")), spec.optim, []
    policy = experiment.policy(torch.device("cpu")).train()
    encoding = experiment.encoding(policy.layout, folder / "tokenizer", torch.device("cpu"))
    samples = experiment.samples(encoding)["train"]
    optimizer = torch.optim.AdamW(
        policy.parameters(), betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    batches = epoch_order(len(samples), batch_size=spec.train.batch_size, seed=spec.seed, epoch=0)
    for step, rows in enumerate(batches[:STEPS]):
        epoch, warm_up = step / len(batches), optim.warmup_epochs
        cosine = optim.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / (1 - warm_up)))
        optimizer.param_groups[0]["lr"] = optim.lr * epoch / warm_up if epoch < warm_up else cosine
        loss, closs, loss_ct = plain_losses(policy, collate([samples[row] for row in rows], policy.layout))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.clip_grad)
        optimizer.step()
        found.append((loss.item(), closs.item(), loss_ct.item(), norm.item()))
    return found


@pytest.mark.slow
def test_the_engine_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    spec, losses = load_spec(TOY, WORDS), Losses()
    run_experiment(load_spec(TOY, [*WORDS, f"train.max_steps={STEPS}"]), runs=tmp_path / "runs", callbacks=[losses])
    expected = plain_loop(spec, tmp_path)
    assert len(losses.found) == STEPS
    for step, (found, plain) in enumerate(zip(losses.found, expected, strict=True), start=1):
        assert found[:3] == pytest.approx(plain[:3], rel=1e-6), step
        assert found[3] == pytest.approx(plain[3], rel=1e-5), step
    assert losses.found[-1][1] < losses.found[0][1]

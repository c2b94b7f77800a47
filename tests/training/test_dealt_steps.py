"""The gradient of a step is that of all of its rows, however they are dealt."""

import numpy as np
import torch
from accelerate import Accelerator
from tiny_policy import LAYOUT, vla_row, world_model_row
from training_rank import make_policy

from vlatrack.data.dealing import deal_rows
from vlatrack.tokens.batch import collate
from vlatrack.training.optimisation import train_step
from vlatrack.training.process_group import ProcessGroup


class Gradients(torch.optim.SGD):
    """Keeps the gradients that it is asked to apply."""

    def step(self, closure: None = None) -> None:
        self.seen = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]


def test_rows_dealt_by_length_have_the_gradient_and_the_metrics_of_the_same_rows_in_their_order() -> None:
    generator = np.random.default_rng(0)
    rows = [world_model_row(generator) if n % 3 == 1 else vla_row(generator, 3 + 5 * (n * 7 % 11)) for n in range(11)]
    results = []
    lengths = np.array([len(row.input_ids) for row in rows])
    for lengths_of in (None, lengths.__getitem__):
        policy = make_policy({"float64"}).train()
        optimizer = Gradients(policy.parameters(), lr=1.0)
        dealt = [batch.tolist() for batch in deal_rows(np.arange(len(rows)), lengths_of, micro_batch=3)]
        result = train_step(
            policy,
            optimizer,
            [collate([rows[row] for row in batch], LAYOUT) for batch in dealt],
            policy.loss_counts(collate(rows, LAYOUT)),
            accelerator=Accelerator(cpu=True),
            group=ProcessGroup(),
            lr=1.0,
            clip_grad=None,
            trains_head=True,
        )
        results.append((dealt, optimizer.seen, policy.metric_values(result.states)))
    (dealt, gradients, metrics), (by_length, dealt_gradients, dealt_metrics) = results
    assert dealt != by_length
    torch.testing.assert_close(dealt_gradients, gradients, rtol=1e-12, atol=1e-12)
    for name, value in metrics.items():
        assert abs(dealt_metrics[name] - value) <= 1e-6 * abs(value), name

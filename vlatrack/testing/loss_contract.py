"""The contract of `vlatrack.LossTerm` as tests that any loss term can run against itself.

Subclass `LossTermContract` as a class `Test…` in a test file, say how your term is made, and run pytest.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from vlatrack.models.losses.base import LossInputs, LossTerm, checked_count, checked_total
from vlatrack.models.losses.terms import check_names
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.bins import Bins, decode_ids
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence, vla_sequence, world_model_sequence

LAYOUT, BINS, WIDTH = TokenLayout(), Bins(), 8


class LossTermContract(ABC):
    """What every loss term must do, tried on rows with action chunks [horizon, action_dim] and with images."""

    horizon, action_dim = 5, 3
    is_documented = False
    """Whether its name is one of vlatrack's own."""

    @abstractmethod
    def make(self) -> LossTerm:
        """The term, with a weight above 0."""

    def test_its_name_is_free_and_can_be_logged(self) -> None:
        if not self.is_documented:
            check_names([self.make()])

    def test_its_total_is_finite_and_has_a_finite_gradient(self) -> None:
        term, inputs = self.make(), self._inputs(self._rows())
        assert checked_count(term, inputs.batch) > 0, "it counts nothing in a batch of all kinds of rows"
        total = checked_total(term, inputs).sum()
        assert total.isfinite()
        total.backward()  # type: ignore[no-untyped-call]
        leaves = (inputs.nll, inputs.logsumexp, inputs.hidden, inputs.actions)
        gradients = [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]
        assert any(gradient.any() for gradient in gradients), "nothing is trained by it"
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_count_and_total_of_a_batch_are_the_sums_of_those_of_its_parts(self) -> None:
        """So the mean does not depend on micro batches, nor on how many processes share a step."""
        term, rows = self.make(), self._rows()
        whole, parts = self._inputs(rows), [self._inputs([row], at=number) for number, row in enumerate(rows)]
        counts = [checked_count(term, part.batch) for part in parts]
        assert checked_count(term, whole.batch) == sum(counts)
        totals = [checked_total(term, part) for part, count in zip(parts, counts, strict=True) if count > 0]
        torch.testing.assert_close(checked_total(term, whole), torch.stack(totals).sum(0), rtol=1e-4, atol=1e-5)

    def test_its_count_reads_shapes_and_numbers_alone(self) -> None:
        """On a GPU, reading a value would stop the host until the device has caught up."""
        term, batch = self.make(), self._inputs(self._rows()).batch
        assert checked_count(term, batch.to("meta")) == checked_count(term, batch)

    def test_batches_without_actions_and_without_images_are_counted_or_left_out(self) -> None:
        term = self.make()
        for rows in (self._rows()[:2], self._rows()[2:]):
            inputs = self._inputs(rows)
            if checked_count(term, inputs.batch) > 0:
                assert checked_total(term, inputs).isfinite().all()
        assert checked_count(term, collate([], LAYOUT)) == 0

    def _rows(self) -> list[TokenSequence]:
        """Two with action chunks, and prompts of different lengths, then two whose answer is an image."""
        generator = np.random.default_rng(0)
        rows = []
        for words in (3, 7):
            actions = generator.uniform(-1, 1, (self.horizon, self.action_dim)).astype(np.float32)
            ids = BINS.encode(actions, start=LAYOUT.action_start)
            text, image = generator.integers(16384, 16600, words).tolist(), generator.integers(4, 500, (2, 2))
            rows.append(
                vla_sequence(
                    text=text,
                    state=None,
                    images=[image],
                    action_ids=ids,
                    actions=actions,
                    layout=LAYOUT,
                    max_length=256,
                )
            )
        for _ in range(2):
            action = BINS.encode(generator.uniform(-1, 1, self.action_dim), start=LAYOUT.action_start)
            images = generator.integers(4, 500, (2, 2, 2))
            history = [([images[0]], action)]
            rows.append(
                world_model_sequence(
                    text=[16400], history=history, next_images=[images[1]], layout=LAYOUT, max_length=256
                )
            )
        return rows

    def _inputs(self, rows: Sequence[TokenSequence], *, at: int = 0) -> LossInputs:
        """What a policy might have computed; of row `at` + i it is the same whatever stands beside it."""
        batch = collate(rows, LAYOUT)
        nll, logsumexp, hidden, actions = [], [], [], []
        for number, row in enumerate(rows):
            noise = torch.Generator().manual_seed(at + number)
            supervised = int((row.labels[1:] != -100).sum())
            nll.append(torch.rand(supervised, generator=noise) + 0.1)
            logsumexp.append(torch.randn(supervised, generator=noise))
            states = torch.randn(len(row.input_ids), WIDTH, generator=noise)
            hidden.append(torch.nn.functional.pad(states, (0, 0, 0, batch.input_ids.shape[1] - len(states))))
            if row.actions is not None:
                actions.append(2 * torch.rand(self.horizon, self.action_dim, generator=noise) - 1)
        return LossInputs(
            batch=batch,
            nll=torch.cat(nll).requires_grad_(),
            logsumexp=torch.cat(logsumexp).requires_grad_(),
            predicted=batch.targets.clone(),
            hidden=torch.stack(hidden).requires_grad_(),
            actions=torch.stack(actions).requires_grad_() if actions else None,
            label_actions=_label_actions(batch),
        )


def _label_actions(batch: Batch) -> torch.Tensor | None:
    if batch.actions is None:
        return None
    ids = batch.targets[batch.action_index].numpy()
    return torch.from_numpy(decode_ids(ids, BINS.centres, start=LAYOUT.action_start)).float()

"""Whether two batches are the same to the bit."""

from dataclasses import fields

import torch

from vlatrack.tokens.batch import Batch


def assert_same_batches(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name

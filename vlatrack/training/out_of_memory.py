"""Memory that a device or its host does not have, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlatrack.errors import TrainingError
from vlatrack.tokens.batch import Batch

WHAT_FITS = "vlatrack validate --memory says which settings fit"
LESS_IN_A_STEP = f"lower train.micro_batch, which leaves the gradient as it is; {WHAT_FITS}"
_WANTED = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)
_CAPACITY = re.compile(r"total capacity of ([\d.]+ GiB)")
_ON_THE_HOST = "DefaultCPUAllocator: "
"""How torch's message begins for memory of the host, for which it has no exception class of its own."""


@contextmanager
def telling_out_of_memory(doing: str, batch: Batch | None = None, *, remedy: str = LESS_IN_A_STEP) -> Iterator[None]:
    """Turn torch's errors about memory that it did not get into one line.

    Args:
        doing: what happens in the block, such as ``step 12``.
        batch: the largest of those that it processes.

    Raises:
        TrainingError: there was not enough memory.
    """
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and _ON_THE_HOST not in str(error):
            raise
        rows = "" if batch is None else f" with {batch.rows} rows x {batch.input_ids.shape[1]} tokens"
        place = "GPU" if on_gpu else "host"
        raise TrainingError(f"{doing}{rows}: out of {place} memory{_numbers(str(error))}; {remedy}") from error


def _numbers(message: str) -> str:
    """What torch's message says about sizes."""
    said = []
    if wanted := _WANTED.search(message):
        size = f"{float(wanted[1]) / 2**30:,.2f} GiB" if wanted[2] == "bytes" else f"{wanted[1]} {wanted[2]}"
        said.append(f"{size} more are needed")
    if capacity := _CAPACITY.search(message):
        said.append(f"the GPU has {capacity[1]}")
    return f" ({', '.join(said)})" if said else ""

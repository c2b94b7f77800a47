"""Kernels that give the same bits each time, where torch has them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = ":4096:8"
"""One of the two workspaces with which cuBLAS is deterministic; read with its first product."""


@contextmanager
def deterministic_algorithms(*, wanted: bool) -> Iterator[None]:
    """Let torch use kernels alone that give the same result each time; it raises RuntimeError, with the name, where an
    operation on a GPU has none. On a CPU all of ours do anyway."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault(_WORKSPACE, _FIXED)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]

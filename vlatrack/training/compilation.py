"""Compiled decoder layers: each in its place, and one graph for all of them.

Only the layers are compiled. They take most of the time, and are the same code with other weights; the rest of the
policy reads indexes whose number differs from batch to batch.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from vlatrack.errors import BackboneError
from vlatrack.models.policy import VlaPolicy

LENGTH_MULTIPLE = 64
"""To multiples of this many positions rows are padded that compiled layers run on, so that lengths repeat."""

_MOST_GRAPHS = 64
"""Batches have several shapes, and training and evaluation have graphs of their own; torch's limit is 8."""
_NOT_COMPILED = (TorchDynamoException, FailOnRecompileLimitHit)


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs on this machine for a device and does not find, such as ``a C compiler (gcc)``."""
    language, variable, program = ("C", "CC", "gcc") if device.type == "cuda" else ("C++", "CXX", "g++")
    programs = [os.environ.get(variable, program), *(["clang"] if device.type == "cuda" else [])]
    return None if any(map(shutil.which, programs)) else f"a {language} compiler ({program})"


def compile_blocks(
    policy: VlaPolicy, *, backend: str | Callable[..., Any] = "inductor", setting: str = "train.compile"
) -> None:
    """Let the backbone's layers be compiled when they are first called; parameters and hooks stay as they are.

    The process may then compile more graphs of one function than torch lets it by default.

    Call it after the layers have got their hooks, activation checkpointing and shards. Layers that share their code
    need the same hooks: torch does not compare hooks when it looks for a graph that fits.

    Args:
        backend: of torch.compile.
        setting: what asks for it, for messages.

    The first forward pass raises BackboneError if a layer is not one graph, or the backend cannot compile it.
    """
    backbone, limits = policy.backbone, torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)  # not an option of torch.compile in 2.11
    for block in backbone.blocks:
        block.compile(fullgraph=True, backend=backend)
    backbone.forward = _telling(backbone.forward, type(backbone).__name__, setting)  # type: ignore[method-assign]
    if backbone.keeps_keys:
        further = _telling(backbone.forward_further, type(backbone).__name__, setting)
        backbone.forward_further = further  # type: ignore[method-assign]


def _telling(run: Callable[..., Any], name: str, setting: str) -> Callable[..., Any]:
    """The same function, with one line for layers that cannot be compiled."""

    def told(*inputs: Any, **options: Any) -> Any:
        try:
            return run(*inputs, **options)
        except (RuntimeError, FailOnRecompileLimitHit) as error:
            # That nothing could be compiled is a plain RuntimeError.
            if not isinstance(error, _NOT_COMPILED) and "fullgraph=True" not in str(error):
                raise
            reason = " ".join(str(error).split("\n")[:2])
            raise BackboneError(
                f"{setting}: a decoder layer of {name} cannot be compiled as one graph ({reason}); set {setting}: false"
            ) from error

    return told

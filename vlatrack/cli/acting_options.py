"""Options of commands that let a policy act: where and how it computes."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlatrack.runner.acting import Policy


class Dtype(StrEnum):
    """What the policy computes in."""

    BF16 = "bf16"
    FP32 = "fp32"


class Device(StrEnum):
    """Where the policy computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DeviceOption = Annotated[Device, typer.Option(help="auto: a GPU if there is one.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="To compute in.", show_default="as the weights are stored")]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the decoder layers: minutes at the start.")]
StaticCacheOption = Annotated[
    bool, typer.Option("--static-cache", help="Keep keys and values of tokens in memory that stays in its place.")
]


def load_policy(
    path: str, checkpoint: str | None, device: Device, dtype: Dtype | None, *, compiles: bool, static_cache: bool
) -> "Policy":
    """See `Policy.load`."""
    from vlatrack.runner.acting import Policy

    return Policy.load(
        path,
        checkpoint=checkpoint,
        device=device.value,
        dtype=None if dtype is None else dtype.value,
        compile=compiles,
        static_cache=static_cache,
    )

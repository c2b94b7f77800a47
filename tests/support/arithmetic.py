"""What a training step uses of an Accelerator, of which a process can have those of one precision alone."""

import torch


class Arithmetic:
    """Computes on the CPU, in float32 or in bf16."""

    device = torch.device("cpu")

    def __init__(self, *, bf16: bool) -> None:
        self._bf16 = bf16

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._bf16)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

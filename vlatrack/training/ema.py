"""An exponential moving average of the weights, in float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlatrack.training.distributed import local_part


class WeightAverage:
    """The average of the trained parameters over the steps of a training, sharded as they are.

    It is what is evaluated, saved as the policy and exported; the training itself goes on with the last weights. In the
    first steps the average is that of few weights, so that it does not remember the initial ones for long.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        """
        Args:
            decay: weight of the old average at each step, in (0, 1).
        """
        self._decay = decay
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int, taken: Tensor) -> None:
        """Add the weights after a step.

        Args:
            step: the number of the step, from 1.
            taken: bool [] on the device; false leaves the average as it is.
        """
        new = taken * (1 - min(self._decay, (1 + step) / (10 + step)))
        for name, parameter in self._trained.items():
            average = local_part(self._averages[name])
            new = new.to(average.device)  # the host, where the parameters are offloaded
            average.lerp_(local_part(parameter).float(), new)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The policy has the averaged weights inside the block, and then its own again."""
        own = self.own_weights()
        kept = {name: parameter.clone() for name, parameter in own.items()}
        copy_weights(self._averages, own)
        try:
            yield
        finally:
            copy_weights(kept, own)

    def tensors(self) -> dict[str, Tensor]:
        """The averages in float32, by the names of their parameters; the average itself, not a copy."""
        return dict(self._averages)

    def own_weights(self) -> dict[str, Tensor]:
        """The weights of the last step, of the same parameters: they themselves, not a copy."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}


@torch.no_grad()
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy tensors into others of the same names, shapes and shards, whatever their dtype."""
    for name, tensor in target.items():
        local_part(tensor).copy_(local_part(source[name]))

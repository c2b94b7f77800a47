"""Muon for the matrices of the decoder layers, and AdamW for all other parameters, as one optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from vlatrack.training.distributed import local_part


class MuonWithAdamW(Optimizer):
    """torch's Muon, scaled as in Liu et al., "Muon is Scalable for LLM Training" (2025), so that the learning rate and
    the weight decay of AdamW serve both. One Muon state is half of AdamW's two."""

    found_inf: Tensor | None = None
    """Float [] on the device: not 0 leaves parameters and states as they are."""

    def __init__(
        self,
        matrices: Iterable[dict[str, Any]],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """
        Args:
            matrices: parameter groups of the parameters that Muon trains; each of them has two axes.
            others: parameter groups of the rest.
        """
        self._muon = Muon(
            [{**group, "muon": True} for group in matrices],
            lr=lr,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = AdamW(
            [{**group, "muon": False} for group in others],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "not supported"
        for part in (self._muon, self._adamw):
            part.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()
        for group in self.param_groups:
            for matrix in group["params"] if group["muon"] else ():
                if matrix.grad is not None:
                    self._muon.param_groups = [{**group, "params": [matrix]}]
                    self._step_matrix(matrix)

    def _step_matrix(self, matrix: Tensor) -> None:
        """Muon does not know `found_inf`: where the step is not finite, matrix and average are put back."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        held = [local_part(matrix), local_part(state["momentum_buffer"])]
        before = [tensor.clone() for tensor in held]
        self._muon.step()  # type: ignore[no-untyped-call]
        if self.found_inf is not None:
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(torch.where(self.found_inf == 0, tensor, value))

"""The learning rate over the epochs of a training."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Learning rate over (fractional) epochs: linear warm-up, then one of three courses.

    ``cosine`` falls to ``min_lr`` over all epochs, ``constant`` stays, ``wsd`` (warm-up, stable, decay) stays and falls
    to ``min_lr`` in the last ``decay_epochs``. The decay as 1 - sqrt(progress), which falls fast at first, ended with
    lower losses than a linear one in Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations" (2024).
    """

    lr: float
    min_lr: float
    warmup_epochs: float
    epochs: float
    shape: Literal["cosine", "constant", "wsd"]
    decay_epochs: float = 0.0  # of wsd
    decay_shape: Literal["sqrt", "linear"] = "sqrt"

    def at(self, epoch: float) -> float:
        """The learning rate at ``epoch`` (0 .. epochs)."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.shape == "constant":
            return self.lr
        begin = self.warmup_epochs if self.shape == "cosine" else self.epochs - self.decay_epochs
        progress = min(1.0, max(0.0, epoch - begin) / max(self.epochs - begin, 1e-12))
        return self.min_lr + (self.lr - self.min_lr) * self._left(progress)

    def _left(self, progress: float) -> float:
        """The part of the way from ``lr`` down to ``min_lr`` that is left after a part of the decay."""
        if self.shape == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - (math.sqrt(progress) if self.decay_shape == "sqrt" else progress)

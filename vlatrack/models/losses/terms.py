"""The three documented loss terms, and the names that a custom one may have."""

import re
from collections.abc import Sequence

from vlatrack.errors import LossError
from vlatrack.metrics.losses import gradient_share_name
from vlatrack.metrics.names import DIM_NAME, IMAGE_NAME, LR_NAME, STEP_NAME, TRAIN
from vlatrack.metrics.schema import MetricSchema
from vlatrack.models.losses.base import LossTerm
from vlatrack.models.losses.closs import CrossEntropy
from vlatrack.models.losses.loss_ct import ContinuousL1, CtTarget
from vlatrack.models.losses.z_loss import ZLoss
from vlatrack.tokens.layout import TokenLayout

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def documented_terms(
    layout: TokenLayout,
    chunk: tuple[int, int],
    *,
    loss_ct_weights: float = 10.0,
    z_loss_weight: float = 1e-5,
    image_token_weight: float | None = None,
    ct_target: CtTarget = "tokens",
) -> tuple[LossTerm, ...]:
    """loss = closs + loss_ct_weights * loss_ct + z_loss_weight * z_loss, added in this order.

    `chunk` is (H, A): steps of an action chunk, numbers of an action.
    """
    return (
        CrossEntropy(layout, image_token_weight=image_token_weight),
        ContinuousL1(chunk, weight=loss_ct_weights, target=ct_target),
        ZLoss(weight=z_loss_weight),
    )


def check_names(custom: Sequence[LossTerm]) -> None:
    """Check that custom terms can be logged under their names.

    Raises:
        LossError: a name is not an identifier, or a metric or another term has it.
    """
    taken = {f"{TRAIN}_acc_image", *MetricSchema.for_experiment(horizon=1, action_dim=1).names(TRAIN)}
    patterns = STEP_NAME, DIM_NAME, IMAGE_NAME, LR_NAME
    for term in custom:
        if not _NAME.fullmatch(term.name):
            raise LossError(f"loss term {term.name!r}: expected a name of a-z, 0-9 and _, a letter first")
        for name in (term.name, f"weighted_{term.name}", gradient_share_name(term.name)):
            logged = f"{TRAIN}_{name}"
            # How many steps, dimensions, images and parameter groups there are depends on the experiment.
            if logged in taken or any(pattern.search(logged) for pattern in patterns):
                raise LossError(f"loss term {term.name}: another metric is called {logged}; give the term another name")
            taken.add(logged)

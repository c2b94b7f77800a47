"""The metrics of the loss terms and of their weighted sum."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vlatrack.metrics.metric import ACTION_UNIT, Direction, Metric, Value
from vlatrack.metrics.states import MetricStates


@dataclass(frozen=True)
class LossMetric:
    """The name and meaning of a loss term. Its state has the same name."""

    name: str
    meaning: str
    unit: str = "1"
    logs_weighted: bool = True
    """Whether weight * value is logged beside the value; false where the weight is always 1."""


CLOSS = LossMetric("closs", "cross-entropy of the answer tokens, mean over supervised positions", "nats", False)
LOSS_CT = LossMetric("loss_ct", "L1 error of the continuous head's action chunk", ACTION_UNIT)
Z_LOSS = LossMetric("z_loss", "squared log-sum-exp of the logits, mean over supervised positions", "nats²")

Weights = Mapping[LossMetric, float]
"""The loss terms of an experiment with their weights, in the order in which they are added."""

DOCUMENTED_LOSSES: Weights = {CLOSS: 1.0, LOSS_CT: 10.0, Z_LOSS: 1e-5}


def loss_metrics(losses: Weights) -> Iterator[Metric]:
    """Each term's mean, their weighted sum `loss`, and each term's part of it.

    A term without a count is 0. If none has one, no step of the window was taken, and all of them are NaN.
    """
    lower, group = Direction.LOWER, "loss"
    for term in losses:
        yield Metric(term.name, term.meaning, term.unit, lower, group, value=_weighted_sum({term: 1.0}, losses))
    parts = " + ".join(f"weighted_{term.name}" if term.logs_weighted else term.name for term in losses)
    yield Metric("loss", f"{parts}, what is optimised", "mixed", lower, group, value=_weighted_sum(losses, losses))
    for term, weight in losses.items():
        if term.logs_weighted:
            name, meaning = f"weighted_{term.name}", f"share of {term.name} in the loss"
            yield Metric(name, meaning, "mixed", lower, group, value=_weighted_sum({term: weight}, losses))


def gradient_share_metrics(losses: Weights) -> Iterator[Metric]:
    """`gradient_share_<term>`: each term's share of the gradient norm."""
    for term in losses:
        meaning = f"gradient norm of weighted {term.name}, as a share of the sum of all terms' gradient norms"
        yield Metric(gradient_share_name(term.name), meaning, "fraction", Direction.NONE, "optim")


def gradient_share_name(term: str) -> str:
    return f"gradient_share_{term}"


def _weighted_sum(part: Weights, losses: Weights) -> Value:
    def value(states: MetricStates) -> float:
        if not any(states[term.name].count.any() for term in losses if term.name in states):
            return math.nan
        means = {term: states[term.name].overall_mean() if term.name in states else 0.0 for term in part}
        return sum(weight * means[term] for term, weight in part.items())

    return value

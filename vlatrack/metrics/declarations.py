"""The declaration of every metric: what it means, and how it is computed from the states of the same name.

The states of the losses are in `losses`; those of the token metrics come from `vlatrack.models.token_metrics`:
l1_loss_action, acc_action and quantisation_floor [H, A], acc_image [slots]. Those of free decoding and of images come
from `vlatrack.evaluation`.

Legend: H steps of a chunk, A numbers of an action.
"""

from collections.abc import Iterable, Iterator

from vlatrack.metrics.losses import LOSS_CT, Weights, gradient_share_metrics, loss_metrics
from vlatrack.metrics.metric import ACTION_UNIT, Direction, Metric, Value
from vlatrack.metrics.names import MOST_GPUS, SYSTEM, step_slot
from vlatrack.metrics.states import MetricStates
from vlatrack.metrics.world_model import world_model_metrics

FREE = "l1_loss_free"
"""State [H, A] and metric of free decoding."""
CONFIDENCE_BUCKETS = 10
"""Of equal width; the confidence of a bin is the largest of the bins' probabilities."""
_ECE = "expected calibration error of action tokens: mean of |confidence - accuracy|, by tenths of confidence"


def split_metrics(*, horizon: int, action_dim: int, image_slots: int, losses: Weights) -> Iterator[Metric]:
    """The metrics of every split, named without it."""
    yield from loss_metrics(losses)
    yield from _actions(horizon, action_dim)
    yield Metric("ece_action", _ECE, "fraction", Direction.LOWER, "action", value=_calibration_error)
    yield from _head(horizon, action_dim)
    yield from _free(horizon, action_dim)
    yield from _images(image_slots)
    yield from world_model_metrics()


def _actions(horizon: int, action_dim: int) -> Iterator[Metric]:
    lower, higher, group = Direction.LOWER, Direction.HIGHER, "action"
    l1, acc = "l1_loss_action", "acc_action"
    error = "L1 error of the actions decoded from the most probable tokens"
    hits = "share of action tokens whose most probable id is right"
    for step in range(horizon):
        x, where = step_slot(step, horizon), f"at step {step} of the chunk"
        l1_step, acc_step = _chunk_mean(l1, step=step), _chunk_mean(acc, step=step)
        yield Metric(f"{l1}_{x}", f"{error} {where}", ACTION_UNIT, lower, group, step, l1_step)
        yield Metric(f"{acc}_{x}", f"{hits} {where}", "fraction", higher, group, step, acc_step)
    yield Metric(l1, f"{error}, mean over the chunk", ACTION_UNIT, lower, group, value=_chunk_mean(l1))
    yield Metric(acc, f"{hits}, over the chunk", "fraction", higher, group, value=_chunk_mean(acc))
    for dim in range(action_dim):
        meaning, value = f"{error}, action dimension {dim}", _chunk_mean(l1, dim=dim)
        yield Metric(f"l1_loss_dim_{dim}", meaning, ACTION_UNIT, lower, group, value=value)
    floor = "L1 error of rounding actions to bins alone; decoded tokens cannot be better"
    mean = _chunk_mean("quantisation_floor")
    yield Metric("quantisation_floor", floor, ACTION_UNIT, lower, group, value=mean)


def _head(horizon: int, action_dim: int) -> Iterator[Metric]:
    lower, group, error = Direction.LOWER, "head", "L1 error of the continuous head"
    for step in range(horizon):
        name, meaning = f"l1_loss_head_{step_slot(step, horizon)}", f"{error} at step {step} of the chunk"
        yield Metric(name, meaning, ACTION_UNIT, lower, group, step, _chunk_mean(LOSS_CT.name, step=step))
    for dim in range(action_dim):
        name, meaning = f"l1_loss_head_dim_{dim}", f"{error}, action dimension {dim}"
        yield Metric(name, meaning, ACTION_UNIT, lower, group, value=_chunk_mean(LOSS_CT.name, dim=dim))


def _free(horizon: int, action_dim: int) -> Iterator[Metric]:
    lower, group = Direction.LOWER, "free"
    error = "L1 error of the actions decoded freely, each token after the policy's own, as it acts"
    mean = _chunk_mean(FREE)
    yield Metric(FREE, f"{error}, mean over the chunk", ACTION_UNIT, lower, group, value=mean)
    for step in range(horizon):
        name, meaning = f"{FREE}_{step_slot(step, horizon)}", f"{error}, at step {step} of the chunk"
        yield Metric(name, meaning, ACTION_UNIT, lower, group, step, _chunk_mean(FREE, step=step))
    for dim in range(action_dim):
        name, meaning = f"{FREE}_dim_{dim}", f"{error}, action dimension {dim}"
        yield Metric(name, meaning, ACTION_UNIT, lower, group, value=_chunk_mean(FREE, dim=dim))


def action_error_grids(states: MetricStates) -> dict[str, list[list[float]]]:
    """The mean L1 error of each chunk step and action dimension, [H][A], by how the actions are predicted.

    `token`: decoded from the most probable tokens, each after the recorded ones; `free`: from tokens of which each
    follows the policy's own; `head`: the continuous head. A route that was not measured is left out.
    Synchronises with the device once.
    """
    on_host = states.cpu()
    routes = {"token": "l1_loss_action", "head": LOSS_CT.name, "free": FREE}
    found = {route: on_host[name] for route, name in routes.items() if name in on_host and on_host[name].count}
    return {route: state.mean().tolist() for route, state in found.items()}


def _calibration_error(states: MetricStates) -> float | None:
    if "action_hits" not in states or not states["action_hits"].count.any():
        return None
    confidence, hits = states["action_confidence"], states["action_hits"]
    return float((confidence.total - hits.total).abs().sum() / hits.count.sum())


def calibration_table(states: MetricStates) -> list[dict[str, float]]:
    """Confidence and accuracy of the action tokens, one row for each tenth of confidence that occurs: `from`, `to`,
    `tokens`, and the means `confidence` and `accuracy`. Empty without action rows.

    Synchronises with the device once.
    """
    on_host = states.cpu()
    if "action_hits" not in on_host:
        return []
    confidence, hits = on_host["action_confidence"].mean().tolist(), on_host["action_hits"].mean().tolist()
    return [
        {
            "from": bucket / CONFIDENCE_BUCKETS,
            "to": (bucket + 1) / CONFIDENCE_BUCKETS,
            "tokens": tokens,
            "confidence": confidence[bucket],
            "accuracy": hits[bucket],
        }
        for bucket, tokens in enumerate(on_host["action_hits"].count.tolist())
        if tokens
    ]


def _images(image_slots: int) -> Iterator[Metric]:
    for slot in range(image_slots):
        name = f"acc_image_{slot}"
        meaning = f"share of right image tokens in slot {slot} of {image_slots}, the last image in the last slot"
        yield Metric(name, meaning, "fraction", Direction.HIGHER, "image", value=_element("acc_image", slot))


def _chunk_mean(name: str, *, step: int | None = None, dim: int | None = None) -> Value:
    """The mean of a state [H, A] over the whole chunk, one of its steps, or one action dimension."""

    def value(states: MetricStates) -> float | None:
        if name not in states or not states[name].count:
            return None
        mean = states[name].mean()
        return float((mean[step] if step is not None else mean[:, dim] if dim is not None else mean).mean())

    return value


def _element(name: str, index: int) -> Value:
    """The mean of one element of a state that counts each element separately."""

    def value(states: MetricStates) -> float | None:
        if name not in states or not states[name].count[index]:
            return None
        return float(states[name].mean()[index])

    return value


_PHASES = {
    "data_wait_s": "spent waiting for data",
    "forward_s": "for the forward pass",
    "backward_s": "for the backward pass",
    "optimiser_s": "for clipping and the optimiser",
    "exchange_s": "for what ranks send each other outside of the passes",
    "metrics_s": "for computing metrics",
    "tracking_s": "for recording them",
}


def training_metrics(losses: Weights, groups: Iterable[str] = ()) -> Iterator[Metric]:
    """The metrics that only training has, named without the split; ``groups`` are the names of parameter groups."""
    none, lower, higher = Direction.NONE, Direction.LOWER, Direction.HIGHER
    yield Metric("grad_norm", "gradient norm before clipping", "1", none, "optim")
    yield Metric("lr", "learning rate", "1", none, "optim")
    for group in groups:
        yield Metric(lr_name(group), f"learning rate of the parameters {group}", "1", none, "optim")
    yield from gradient_share_metrics(losses)
    yield Metric("samples_per_s", "training samples per second", "1/s", higher, "speed")
    yield Metric("tokens_per_s", "tokens of the training samples per second, without padding", "1/s", higher, "speed")
    yield Metric("padding_share", "part of the positions that are padding", "fraction", lower, "speed")
    mfu = "model FLOPs utilisation: arithmetic of the tokens without padding / what the GPU could do in bf16"
    yield Metric("mfu", mfu, "fraction", higher, "speed")
    yield Metric("step_time_s", "time of one optimiser step", "s", lower, "speed")
    for phase, meaning in _PHASES.items():
        yield Metric(phase, f"part of that time {meaning}", "s", lower, "speed")
    yield Metric("memory_mib", "peak memory in use on the device (the process, on a CPU)", "MiB", lower, "speed")
    skipped = "steps so far that were not taken, because loss or gradient was not finite"
    yield Metric("skipped_steps", skipped, "steps", lower, "optim")


def lr_name(group: str) -> str:
    return f"lr_{group}"


def run_metrics() -> Iterator[Metric]:
    """The metrics that belong to no split: progress and the machine."""
    none, group = Direction.NONE, "system"
    yield Metric("epoch", "passes over the training data", "epochs", none, "progress")
    yield Metric(f"{SYSTEM}cpu_percent", "load of all processor cores of the machine", "%", none, group)
    yield Metric(f"{SYSTEM}memory_percent", "memory of the machine in use", "%", none, group)
    yield Metric(f"{SYSTEM}process_memory_mib", "resident memory of the training process", "MiB", none, group)
    for gpu in range(MOST_GPUS):
        yield Metric(f"{SYSTEM}gpu_{gpu}_percent", f"load of GPU {gpu} of the machine", "%", none, group)
        yield Metric(f"{SYSTEM}gpu_{gpu}_memory_mib", f"memory of GPU {gpu} in use", "MiB", none, group)
        yield Metric(f"{SYSTEM}gpu_{gpu}_power_w", f"power that GPU {gpu} draws", "W", none, group)

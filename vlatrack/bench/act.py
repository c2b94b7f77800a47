"""What acting costs on this machine: the continuous head against the bare forward pass over the prompt, and the blocks
of a chunk decoded side by side against one after another.

The policy is the experiment's own with random weights; the observation has images, an instruction and a state as long
as its longest sample. All ways are measured in turns, so that what else the machine does meets each of them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlatrack.bench.memory import longest_samples, sizes_of
from vlatrack.builders.policy import build_policy
from vlatrack.builders.training import build_accelerator
from vlatrack.errors import SpecError
from vlatrack.inference.decoding import Prefill, StaticRoom, decode_blocks, head_actions, most_probable, prefill
from vlatrack.models.attention import attention_mask
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.acting import Dtype, prepare
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.tokens.prompts import Ids
from vlatrack.tokens.text import ByteTokenizer
from vlatrack.training.compilation import LENGTH_MULTIPLE


@dataclass(frozen=True)
class ActingCost:
    """Median seconds of one observation, and the ratios of the pairs."""

    device: str
    parameters: int
    prompt: int  # tokens
    horizon: int
    action_dim: int
    rounds: int
    prefill_s: float  # the backbone's forward pass over the prompt alone
    head_s: float  # from the prompt's ids to the chunk of the ActionHead
    blocks_s: float  # to the chunk's tokens, side by side
    one_by_one_s: float  # to the chunk's tokens, one after another
    head_ratio: float  # median of head / prefill
    speed_up: float  # median of one after another / side by side, both without the prompt's pass
    same_tokens: bool
    asked: "AskedCost | None"  # with the dtype, compilation or cache that was asked for


@dataclass(frozen=True)
class AskedCost:
    """The same with options of `Policy.load`, in turns with the policy without them."""

    dtype: str | None
    compiled: bool
    static_cache: bool
    head_s: float
    blocks_s: float
    head_gain: float  # median of without / with
    blocks_gain: float
    same_tokens: bool
    head_difference: float  # the largest of an action's numbers, which are in the range of [-1, 1]


def measure_acting(
    spec: ExperimentSpec,
    *,
    rounds: int,
    dtype: Dtype | None = None,
    compiles: bool = False,
    static_cache: bool = False,
    on_round: Callable[[int], None] = lambda _: None,
) -> ActingCost:
    """Measure each way so often, after one round that does not count.

    Args:
        dtype, compiles, static_cache: options of `Policy.load`, with which acting is measured once more.
        on_round: called with the number of rounds that are done.

    Raises:
        VlatrackError: the sizes of the backbone are not known, the experiment has no VLA samples, or the device is not
            there.
    """
    if "vla" not in spec.data.samples:
        raise SpecError("data.samples: has no vla, so this policy does not act")
    accelerator, source = build_accelerator(spec), sizes_of(spec)
    with accelerator.device:
        policy = build_policy(spec, source).to(accelerator.device).eval()
    vla = spec.model_copy(update={"data": spec.data.model_copy(update={"samples": ("vla",)})})
    (sample, *_), _ = longest_samples(vla, source.text or ByteTokenizer(policy.layout), policy.layout)
    prompt = sample.input_ids[: int(np.argmax(sample.input_ids == policy.layout.action_start))]
    ways = _ways(policy, prompt)
    is_asked = dtype is not None or compiles or static_cache
    if is_asked:
        asked = deepcopy(policy)
        prepare(asked, dtype=dtype, compiles=compiles)
        ways |= _asked_ways(asked, prompt, LENGTH_MULTIPLE if compiles else 1, static_cache=static_cache)
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Tensor] = {}
    with torch.inference_mode(), accelerator.autocast():
        for turn in range(rounds + 1):
            for name, way in ways.items():
                seconds, results[name] = _timed(way, accelerator.device)
                if turn:
                    times[name].append(seconds)
            on_round(turn)
    medians = {name: statistics.median(values) for name, values in times.items()}
    decoded = [
        (one - first) / (side - first)
        for one, side, first in zip(times["one_by_one"], times["blocks"], times["kept"], strict=True)
    ]
    return ActingCost(
        device=str(accelerator.device),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        prompt=len(prompt),
        horizon=policy.action_head.time_horizon,
        action_dim=policy.action_head.action_dim,
        rounds=rounds,
        prefill_s=medians["prefill"],
        head_s=medians["head"],
        blocks_s=medians["blocks"],
        one_by_one_s=medians["one_by_one"],
        head_ratio=statistics.median(h / p for h, p in zip(times["head"], times["prefill"], strict=True)),
        speed_up=statistics.median(decoded),
        same_tokens=torch.equal(results["blocks"], results["one_by_one"]),
        asked=_asked_cost(times, results, dtype, compiles, static_cache) if is_asked else None,
    )


def _asked_cost(
    times: Mapping[str, list[float]],
    results: Mapping[str, Tensor],
    dtype: Dtype | None,
    compiles: bool,
    static_cache: bool,
) -> AskedCost:
    def gain(way: str) -> float:
        pairs = zip(times[way], times[f"asked_{way}"], strict=True)
        return statistics.median(without / asked for without, asked in pairs)

    return AskedCost(
        dtype=dtype,
        compiled=compiles,
        static_cache=static_cache,
        head_s=statistics.median(times["asked_head"]),
        blocks_s=statistics.median(times["asked_blocks"]),
        head_gain=gain("head"),
        blocks_gain=gain("blocks"),
        same_tokens=torch.equal(results["blocks"], results["asked_blocks"]),
        head_difference=float((results["head"] - results["asked_head"]).abs().max()),
    )


def _ways(policy: VlaPolicy, prompt: Ids) -> dict[str, Callable[[], Tensor]]:
    ids = torch.from_numpy(prompt)[None].to(policy.centres.device)
    mask = attention_mask(ids, policy.layout)
    return {
        "prefill": lambda: policy.backbone(ids, mask),
        "head": lambda: head_actions(policy, prefill(policy, [prompt], keep=False)),
        "kept": lambda: prefill(policy, [prompt], keep=True).hidden,
        "blocks": lambda: decode_blocks(policy, prefill(policy, [prompt], keep=True)),
        "one_by_one": lambda: _decode_one_by_one(policy, prefill(policy, [prompt], keep=True)),
    }


def _asked_ways(
    policy: VlaPolicy, prompt: Ids, length_multiple: int, *, static_cache: bool
) -> dict[str, Callable[[], Tensor]]:
    """As `ActingPolicy` does it, which leaves precision to the weights."""
    static = StaticRoom(policy.backbone) if static_cache else None
    kind = policy.centres.device.type

    def head() -> Tensor:
        with torch.autocast(kind, enabled=False):
            return head_actions(policy, prefill(policy, [prompt], keep=False, length_multiple=length_multiple))

    def blocks() -> Tensor:
        with torch.autocast(kind, enabled=False):
            kept = prefill(policy, [prompt], keep=True, length_multiple=length_multiple, static=static)
            return decode_blocks(policy, kept)

    return {"asked_head": head, "asked_blocks": blocks}


def _decode_one_by_one(policy: VlaPolicy, prompts: Prefill) -> Tensor:
    """As ``decode_blocks`` for one row: a forward pass for each token, with keys and values kept."""
    head, layout, device = policy.action_head, policy.layout, prompts.input_ids.device
    kept, length, block = prompts.kept, prompts.input_ids.shape[1], head.action_dim + 2
    chunk = []
    for step in range(head.time_horizon):
        token = torch.tensor([[layout.action_start]], device=device)
        for place in range(block):
            position = length + step * block + place
            mask = torch.ones(1, 1, position + 1, dtype=torch.bool, device=device)
            mask[:, :, length : length + step * block] = False  # the earlier blocks
            hidden, kept = policy.backbone.forward_further(token, mask, torch.tensor([[position]], device=device), kept)
            if place < head.action_dim:
                token = most_probable(policy, hidden)
                chunk.append(token)
            else:
                token = torch.tensor([[layout.action_end]], device=device)
    return torch.cat(chunk, dim=1).view(1, head.time_horizon, head.action_dim)


def _timed(way: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result

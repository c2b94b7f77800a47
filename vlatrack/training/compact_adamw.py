"""AdamW that computes in float32 and stores less: bf16 parameters, and averages in bf16 or in 8 bits.

A parameter in bf16 has 8 significant bits, so that rounding to nearest drops every update below half of its last bit,
which at the learning rates of a fine-tuning is nearly all of them. There are two cures:

- ``stochastic`` rounds up with a probability in proportion to what would be cut off, so that updates arrive on average;
- ``kahan`` keeps what was cut off, in another bf16 number, and adds it to the next update.

torchao's AdamW rounds stochastically, too, and its numbers are the same to the bit. This one also knows `found_inf`, by
which a step that is not finite is left out without a synchronisation, draws the same numbers in each copy of a policy
that is replicated, has plain tensors as states, which a safetensors file can hold, and compiles one graph for all
parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlatrack.training.eight_bits import BLOCK, dequantised, has_blocks, levels, quantised

Rounding = Literal["stochastic", "kahan"]
States = Literal["fp32", "bf16", "8bit"]

_FRACTION, _BF16_STEP = 0xFFFF, 0x10000  # of the bits of a float32: what bf16 lacks, and its last bit
_AVERAGES = "exp_avg", "exp_avg_sq"


class CompactAdamW(Optimizer):
    """AdamW for parameters, sharded or not, in float32 or bf16; weight decay is decoupled."""

    found_inf: Tensor | None = None
    """Float [] on the device, as GradScaler sets it: not 0 leaves parameters and states as they are."""
    draw = 0
    """The number of this step, which decides together with ``seed`` what stochastic rounding draws."""
    at_once = 1 << 18
    """Numbers of a parameter, a multiple of 256, that are updated together where nothing is compiled: few enough that
    their float32 copies stay in the cache, which takes a third of the time of 2^25."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        rounding: Rounding | None,
        states: States,
        seed: int = 0,
    ) -> None:
        """
        Args:
            rounding: of parameters in bf16.
            states: what the averages are stored in; with ``8bit`` those of small tensors are in fp32.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._rounding, self._states, self._seed = rounding, states, seed
        self._levels: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "not supported"
        one = self.param_groups[0]["params"][0]
        if self._states == "8bit" and not self._levels:
            self._levels = {name: levels(one.device, signed=name == "exp_avg") for name in _AVERAGES}
        taken = torch.ones((), dtype=torch.bool, device=one.device) if self.found_inf is None else self.found_inf == 0
        with _drawing(self._seed, self.draw, one) if self._rounding == "stochastic" else nullcontext():
            for group in self.param_groups:
                lr = torch.tensor(group["lr"], dtype=torch.float32)
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group, lr, taken)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(dict(state_dict))
        # torch gives each state the dtype of its parameter, but these have their own.
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][name] = value.to(parameter.device)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any], lr: Tensor, taken: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._initial_state(parameter))
        state["step"].add_(taken)
        tensors = {name: _flat(value) for name, value in state.items() if name != "step"}
        tensors |= {"parameter": _flat(parameter), "gradient": _flat(gradient)}
        if not len(tensors["parameter"]):
            return  # fewer rows than processes: others hold them
        compiles = parameter.device.type == "cuda"
        for part in [tensors] if compiles else _parts(tensors, self.at_once):
            (_compiled() if compiles else _update_part)(
                part,
                self._levels,
                state["step"],
                taken,
                lr,
                lr * group["weight_decay"],
                group["betas"],
                group["eps"],
                stochastic=self._rounding == "stochastic" and parameter.dtype == torch.bfloat16,
            )

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
        dtype = torch.bfloat16 if self._states == "bf16" else torch.float32
        for name in _AVERAGES:
            if self._states == "8bit" and has_blocks(parameter):
                state[f"{name}_codes"] = torch.zeros_like(parameter, dtype=torch.uint8)
                blocks = parameter.numel() // BLOCK
                state[f"{name}_scale"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
            else:
                state[name] = torch.zeros_like(parameter, dtype=dtype)
        if self._rounding == "kahan" and parameter.dtype == torch.bfloat16:
            state["remainder"] = torch.zeros_like(parameter)
        return state


def _flat(tensor: Any) -> Tensor:
    """This process's numbers, in one row."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).reshape(-1)


def _parts(tensors: Mapping[str, Tensor], at_once: int) -> Iterator[dict[str, Tensor]]:
    length = len(tensors["parameter"])
    if length <= at_once:
        yield dict(tensors)
        return
    for begin in range(0, length, at_once):
        yield {
            name: value[begin // BLOCK : (begin + at_once) // BLOCK]
            if name.endswith("_scale")
            else value[begin : begin + at_once]
            for name, value in tensors.items()
        }


def _update_part(
    tensors: Mapping[str, Tensor],
    of_codes: Mapping[str, Tensor],
    step: Tensor,
    taken: Tensor,
    lr: Tensor,
    decay: Tensor,
    betas: tuple[float, float],
    eps: float,
    *,
    stochastic: bool,
) -> None:
    """One step of some numbers, in place.

    Args:
        tensors: rows of the same length, by name: parameter, gradient and states.
        of_codes: the values that 8-bit codes stand for, by average.
        step: float [], from 1.
        taken: bool []; false leaves all as it is.
        lr, decay: float [] on the host, so that another value needs no other graph.
    """
    parameter, gradient = tensors["parameter"], tensors["gradient"].float()
    wanted = parameter.float()
    before = [_read(tensors, name, of_codes) for name in _AVERAGES]
    averages = [
        average.lerp(value, 1 - beta)
        for average, value, beta in zip(before, (gradient, gradient.square()), betas, strict=True)
    ]
    for name, average in zip(_AVERAGES, averages, strict=True):
        _write(tensors, name, of_codes, average, taken)
    corrections = [1 - beta**step for beta in betas]
    denominator = averages[1].sqrt() / corrections[1].sqrt() + eps
    wanted = wanted - decay * wanted
    update = lr * (averages[0] / corrections[0]) / denominator
    if "remainder" in tensors:
        remainder = tensors["remainder"]
        wanted = wanted - (update - remainder.float())
        rounded = wanted.bfloat16()
        remainder.copy_(torch.where(taken, wanted - rounded.float(), remainder))
    else:
        wanted = wanted - update
        rounded = _rounded_by_chance(wanted) if stochastic else wanted.to(parameter.dtype)
    parameter.copy_(torch.where(taken, rounded, parameter))


def _read(tensors: Mapping[str, Tensor], name: str, of_codes: Mapping[str, Tensor]) -> Tensor:
    if f"{name}_codes" in tensors:
        return dequantised(tensors[f"{name}_codes"], tensors[f"{name}_scale"], of_codes[name])
    return tensors[name].float()


def _write(
    tensors: Mapping[str, Tensor], name: str, of_codes: Mapping[str, Tensor], average: Tensor, taken: Tensor
) -> None:
    new = {name: average}
    if f"{name}_codes" in tensors:
        codes, scale = quantised(average, of_codes[name])
        new = {f"{name}_codes": codes, f"{name}_scale": scale}
    for stored, value in new.items():
        tensors[stored].copy_(torch.where(taken, value, tensors[stored]))


def _rounded_by_chance(values: Tensor) -> Tensor:
    """To bf16: away from 0 with the probability of what bf16 cuts off, in parts of its last bit."""
    bits = values.view(torch.int32)
    drawn = torch.randint(0, _BF16_STEP, bits.shape, dtype=torch.int32, device=bits.device)
    fraction = bits & _FRACTION
    towards_zero = bits - fraction
    return torch.where(drawn < fraction, towards_zero + _BF16_STEP, towards_zero).view(torch.float32).bfloat16()


@cache
def _compiled() -> Callable[..., None]:
    """One kernel instead of thirty that each read and write all numbers; for any length the same."""
    return torch.compile(_update_part, fullgraph=True, dynamic=True)


@contextmanager
def _drawing(seed: int, step: int, one: Tensor) -> Iterator[None]:
    """Draws that depend on seed, step and the part of the policy that this process holds, as one of the parameters
    tells: copies of it, in other processes, round alike. The generators of dropout are then as they were."""
    shard: tuple[int, ...] = ()
    if isinstance(one, DTensor):
        own = one.device_mesh.get_coordinate() or ()
        shard = tuple(at for at, place in zip(own, one.placements, strict=True) if place.is_shard())
    (mixed,) = np.random.SeedSequence([seed, step, *shard]).generate_state(1, np.uint64)
    on_gpu = one.device.type == "cuda"
    with torch.random.fork_rng(devices=[one.device] if on_gpu else []):
        # Parameters on the host may be those of a policy that computes, and drops out, on a GPU.
        seed_generator = torch.manual_seed if on_gpu else torch.default_generator.manual_seed
        seed_generator(int(mixed >> 1))
        yield

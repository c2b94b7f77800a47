"""Modules on torch's meta device that leave the random generator as if they had been given weights."""

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten
_DRAWS = {_aten.normal_.default, _aten.uniform_.default}


class MetaDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, parameters that modules register are on the meta device; buffers are not.

    The numbers that such a parameter would begin with are drawn and forgotten, one parameter at a time, so that
    whatever is drawn later is what it would have been. They can be drawn ``again``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._empty = init_empty_weights(include_buffers=False)
        self._scratch = torch.empty(0)
        self._last: dict[int, tuple[Tensor, Any, tuple[Any, ...]]] = {}  # by storage

    def __enter__(self) -> "MetaDraws":
        self._empty.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._scratch = torch.empty(0)
        self._empty.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in _DRAWS and args[0].is_meta:
            assert not kwargs or kwargs.get("generator") is None, "drawn from the global generator"
            self._last[_storage(args[0])] = torch.get_rng_state(), operation, args[1:]
            operation(self._scratch_like(args[0]), *args[1:])
        return operation(*args, **(kwargs or {}))

    def _scratch_like(self, tensor: Tensor) -> Tensor:
        """Memory that every draw uses in turn: a new piece for each would leave holes between what stays."""
        assert tensor.is_contiguous(), "drawn in the order of its numbers"
        if self._scratch.dtype != tensor.dtype or len(self._scratch) < tensor.numel():
            self._scratch = torch.empty(tensor.numel(), dtype=tensor.dtype)
        return self._scratch[: tensor.numel()].view(tensor.shape)

    def again(self, parameter: Tensor) -> Tensor:
        """The numbers that a parameter on the meta device was last given."""
        state, operation, arguments = self._last[_storage(parameter)]
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            drawn: Tensor = operation(torch.empty(parameter.shape, dtype=parameter.dtype), *arguments)
        return drawn


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata

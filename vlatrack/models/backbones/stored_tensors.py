"""Tensors in weight files, a few rows of which can be read at a time.

Rows of a safetensors file are read, not mapped into memory: pages of a mapped file count as memory of the process.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlatrack.errors import CheckpointError

_PIECE = 4 << 20  # bytes, of a tensor that is read piece by piece
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    shape: torch.Size
    rows: Callable[[int, int], Tensor]
    """Those from the first number up to the second; (0, 1) of a tensor without dimensions is all of it."""

    @classmethod
    def of(cls, value: Tensor) -> Self:
        """One that is in memory already."""
        return cls(value.shape, lambda start, stop: value[start:stop] if value.dim() else value)

    def whole(self) -> Tensor:
        return self.rows(0, self.shape[0] if self.shape else 1)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """The rows from ``start`` up to ``stop`` in pieces of moderate size, each with its first row."""
        step = max(1, _PIECE // max(1, 4 * self.shape[1:].numel()))
        for first in range(start, stop, step):
            yield first, self.rows(first, min(first + step, stop))


def stored_tensors(file: Path, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors of .safetensors, .bin, .pt or .pth; nothing but tensors is unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, or contains anything else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if file.suffix != ".safetensors":
        state = _torch_state(file)
        # Popped one by one: a file written before torch 1.6 cannot be memory-mapped and is held in memory as a whole.
        yield from ((name, StoredTensor.of(state.pop(name))) for name in list(state) if name.startswith(prefix))
        return
    try:
        with safe_open(file, framework="pt"), file.open("rb") as stream:  # the first checks the header
            length = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(length)).items():
                if name != "__metadata__" and name.startswith(prefix):
                    shape, start = torch.Size(entry["shape"]), 8 + length + entry["data_offsets"][0]
                    yield name, StoredTensor(shape, partial(_rows, stream, start, shape, _DTYPES[entry["dtype"]]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: unreadable or truncated ({_first_line(error)})") from error
    except KeyError as error:
        raise CheckpointError(f"{file}: has tensors of a type that cannot be read ({error})") from error


def _rows(stream: BinaryIO, at: int, shape: torch.Size, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    rows = torch.empty(shape[1:] if not shape else (stop - start, *shape[1:]), dtype=dtype)
    stream.seek(at + start * shape[1:].numel() * dtype.itemsize)
    into = memoryview(rows.view(-1).view(torch.uint8).numpy())
    while into:
        count = stream.readinto(into)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ends too early")
        into = into[count:]
    return rows


def _torch_state(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{file}: unreadable or truncated ({_first_line(error)})") from error
    except Exception as error:  # weights_only raises UnpicklingError of the pickle module, which stays unimported here
        raise CheckpointError(f"{file}: refused, it holds more than tensors ({_first_line(error)})") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict of tensors")
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

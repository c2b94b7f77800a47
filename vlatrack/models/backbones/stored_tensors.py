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
    dtype: torch.dtype
    read: Callable[[int, Tensor], None]
    """Reads the rows from the first one's number on into a contiguous tensor on the CPU, of the same dtype."""

    @classmethod
    def of(cls, value: Tensor) -> Self:
        """One that is in memory already."""

        def read(start: int, into: Tensor) -> None:
            into.copy_(value[start : start + len(into)] if value.dim() else value)

        return cls(value.shape, value.dtype, read)

    def whole(self) -> Tensor:
        rows = torch.empty(self.shape, dtype=self.dtype)
        self.read(0, rows)
        return rows

    def copy_rows(self, start: int, target: Tensor) -> None:
        """Copy the rows from ``start`` on into all of ``target``; in pieces if its dtype or device is another."""
        if target.dtype == self.dtype and target.device.type == "cpu" and target.is_contiguous():
            self.read(start, target)
            return
        rows = max(1, _PIECE // max(1, self.dtype.itemsize * self.shape[1:].numel()))
        piece = torch.empty((min(rows, len(target)), *self.shape[1:]), dtype=self.dtype)
        for first in range(0, len(target), rows):
            part = target[first : first + rows]
            self.read(start + first, piece[: len(part)])
            part.copy_(piece[: len(part)])


def stored_tensors(file: Path, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors of .safetensors, .bin, .pt, .pth or .ckpt; nothing but tensors is unpickled.

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
                    yield name, StoredTensor(shape, _DTYPES[entry["dtype"]], partial(_read, stream, start))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: unreadable or truncated ({_first_line(error)})") from error
    except KeyError as error:
        raise CheckpointError(f"{file}: has tensors of a type that cannot be read ({error})") from error


def read_tensors(file: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``stored_tensors``, whole, each read only when it is reached.

    Raises:
        CheckpointError: the file is missing, truncated, or contains anything but tensors.
    """
    for name, stored in stored_tensors(file, prefix):
        try:
            yield name, stored.whole()
        except OSError as error:
            raise CheckpointError(f"{file}: unreadable or truncated ({error})") from error


def _read(stream: BinaryIO, at: int, start: int, into: Tensor) -> None:
    row_bytes = into[:1].numel() * into.element_size() if into.dim() else 0
    stream.seek(at + start * row_bytes)
    left = memoryview(into.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    while left:
        count = stream.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ends too early")
        left = left[count:]


def _torch_state(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{file}: unreadable or truncated ({_first_line(error)})") from error
    except Exception as error:  # weights_only raises UnpicklingError of the pickle module, which stays unimported here
        raise CheckpointError(
            f"{file}: refused, it holds more than tensors ({_first_line(error)}); where you trust it, save its state "
            "dict alone with torch.save"
        ) from error
    state = loaded
    for key in ("model", "state_dict"):  # the reference's name of it, and Lightning's
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            state = loaded[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict of tensors")
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

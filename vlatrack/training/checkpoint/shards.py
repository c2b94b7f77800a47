"""Named tensors in safetensors files: each rank writes what it holds of them, any number of ranks reads what it needs.

Who writes what, and who reads which part of which file, is planned by torch.distributed.checkpoint, and the files are
those of its HuggingFaceStorageWriter: safetensors whose header also says where in its tensor each piece begins. They
hold no pickle, and the file of a rank that is alone is a plain one. They are not written by that class because it puts
each file together in memory, twice, while it holds the interpreter, for which the training step would have to wait.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vlatrack.errors import CheckpointError
from vlatrack.training.checkpoint.manifest import StoredFile

SUFFIX = ".safetensors"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of dtypes in safetensors."""


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor under its name; of one that wraps others, such as a quantised optimiser state with its codes and scales,
    those, as ``name.codes`` and ``name.scale``. Writing into them writes into the tensor.

    Raises:
        CheckpointError: a wrapper of others is sharded: its parts could not be put together again.
    """
    if isinstance(tensor, DTensor):
        if is_traceable_wrapper_subclass(tensor.to_local()):
            raise CheckpointError(f"{name}: quantised and sharded, which cannot be saved; train in one process")
        yield name, tensor
    elif is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for part in names:
            yield from plain_parts(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


class HostCopies:
    """Copies of tensors on the host; the memory of the last ones is used again, so that only the first take longer."""

    def __init__(self) -> None:
        self._last: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies that stay as the tensors are now, until the next call."""
        copies = {}
        for name, tensor in tensors.items():
            held = self._last.get(name)
            if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
                held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = held.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        self._last = copies
        return copies


class _Planner(DefaultSavePlanner):
    """Plans with the tensors as they are sharded, and hands out what this rank holds of them."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._held = held

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._held[index.fqn]


class Shard:
    """What one rank is about to write of named tensors.

    All ranks make one with the same names; a tensor that is whole on several ranks is written by one of them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], copies: HostCopies | None = None) -> None:
        """The tensors must not change until `write` has returned, unless they are copied now."""
        held = {
            name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
            for name, tensor in tensors.items()
        }
        self._planner = _Planner(held if copies is None else copies.of(held))
        self._planner.set_up_planner(dict(tensors), is_coordinator=True)
        self.plan: SavePlan = self._planner.create_local_plan()
        self._planner.state_dict = {}

    def write(self, folder: Path, stem: str, plans: Sequence[SavePlan], rank: int) -> dict[str, StoredFile]:
        """Write this rank's file, given the plans of all ranks, and flush it to the disk.

        Returns:
            the file by its name in ``folder``: ``stem.safetensors`` of a single rank, else
            ``stem-00002-of-00003.safetensors``; empty if others write all that this rank holds.

        Raises:
            OSError: it cannot be written.
        """
        agreed, _ = self._planner.create_global_plan(list(plans))
        items = sorted(agreed[rank].items, key=lambda item: item.index.fqn)
        if not items:
            return {}
        position = "" if len(plans) == 1 else f"-{rank + 1:05d}-of-{len(plans):05d}"
        file = folder / f"{stem}{position}{SUFFIX}"
        offsets = {item.index.fqn: {"saved_offsets": list(_chunk_of(item).offsets)} for item in items}
        pieces = [Piece.of(item.index.fqn, self._planner.resolve_data(item)) for item in items]
        return {file.name: write_safetensors(file, pieces, {"DCP_SHARDING_INFO": json.dumps(offsets)})}


def _chunk_of(item: WriteItem) -> Any:
    assert item.tensor_data is not None, "only tensors are planned"
    return item.tensor_data.chunk


@dataclass(frozen=True)
class Piece:
    """A tensor to be written, which `read` provides when it is its turn."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Any) -> "Piece":
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(file: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> StoredFile:
    """Write a safetensors file, one tensor after another, and flush it to the disk.

    Raises:
        CheckpointError: safetensors has no name for the dtype of a tensor.
        OSError: the file cannot be written.
    """
    pieces = sorted(pieces, key=lambda piece: (-piece.dtype.itemsize, piece.name))  # so that all lie aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for piece in pieces:
        if piece.dtype not in _DTYPES:
            raise CheckpointError(f"{file}: {piece.name} is {piece.dtype}, which safetensors cannot hold")
        span = [end, end := end + piece.size]
        header[piece.name] = {"dtype": _DTYPES[piece.dtype], "shape": list(piece.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text, *map(_bytes_of, pieces)):
            stream.write(part)  # as hashing does, this lets other threads run meanwhile
            digest.update(part)
        stream.flush()
        os.fsync(stream.fileno())
    return StoredFile(digest.hexdigest(), 8 + len(text) + end)


def _bytes_of(piece: Piece) -> Any:
    tensor = piece.read().detach().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class StoredTensors:
    """The tensors in the safetensors files of a folder, however many pieces each of them is in.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = HuggingFaceStorageReader(str(folder))
        with _clear_read_errors(folder):
            self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor as a whole, by name."""
        return {name: tuple(self._stored(name).size) for name in self._metadata.state_dict_metadata}

    def pieces(self) -> list[Piece]:
        """The tensors, each of which is put together when it is read."""
        return [
            Piece(name, self._stored(name).properties.dtype, shape, lambda name=name: self.read(name))  # type: ignore[misc]
            for name, shape in self.shapes.items()
        ]

    def read(self, name: str) -> Tensor:
        """One tensor as a whole, on the host."""
        stored = self._stored(name)
        tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
        self.read_into({name: tensor})
        return tensor

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy stored values into tensors of the same shapes; of sharded ones, each rank reads its part.

        Raises:
            CheckpointError: a file cannot be read.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        with _clear_read_errors(self._folder):
            self._reader.read_data(planner.finish_plan(plan), planner)

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self._metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata), "safetensors hold tensors only"
        return stored


@contextmanager
def _clear_read_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{folder}: a {SUFFIX} file is unreadable or truncated ({error})") from error

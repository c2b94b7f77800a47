"""Pretrained checkpoint folders: config.json, tokenizer, and weights read one tensor at a time."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.four_bits import FourBitLinear
from vlatrack.models.backbones.original_tokenizer import WEIGHTS as ORIGINAL_WEIGHTS
from vlatrack.models.backbones.original_tokenizer import is_original, original_config, original_tensors
from vlatrack.models.backbones.stored_tensors import StoredTensor, read_tensors, stored_tensors

_HEAD_PREFIX = "action_head."
_WRAPPERS = re.compile(r"^(?:module\.|_fsdp_wrapped_module\.|_orig_mod\.)+")
_PROVENANCE = ("_name_or_path", "transformers_version")  # keys of config.json that do not describe the model
_MIB, _SAMPLES = 1 << 20, 16


@dataclass(frozen=True)
class PretrainedFolder:
    """A checkpoint folder: a Hugging Face model, a RynnVLA-002 / WorldVLA state dict, or Chameleon's own tokenizers."""

    path: Path
    config: Mapping[str, Any]  # its config.json
    files: tuple[Path, ...]  # the weight files

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors on the CPU, each read only when it is reached.

        Raises:
            CheckpointError: a file is truncated, or contains anything but tensors.
        """
        for file in self.files:
            read = original_tensors if file.name == ORIGINAL_WEIGHTS else read_tensors
            yield from read(file, prefix)


def open_pretrained(place: str, *, with_weights: bool = True) -> PretrainedFolder:
    """A checkpoint folder, or a hub repository from the local cache or the hub. Reads no weights.

    Args:
        with_weights: false asks for the JSON files alone, so that the weights need not be there.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
    """
    folder = _folder_of(place, with_weights=with_weights)
    if is_original(folder):
        return PretrainedFolder(folder, original_config(folder), (folder / ORIGINAL_WEIGHTS,) if with_weights else ())
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{config_file}: no such file; a checkpoint folder needs its config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file}: not readable JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file}: not a model's configuration (a JSON object)")
    return PretrainedFolder(folder, config, _weight_files(folder) if with_weights else ())


# --- mapping to a policy -------------- -----------------------------------------------------------


@dataclass(frozen=True)
class WeightMap:
    """How the parameters of a pretrained model map to those of a policy."""

    rename: Callable[[str], str | None]
    """From the pretrained name of a parameter to ours; None for a parameter the policy does not have."""
    reshape: Callable[[str, Tensor, Tensor], Tensor] = lambda _name, value, _target: value
    """From (pretrained name, value, our parameter) to the value in our shape; any other shape is an error."""
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """By our name, for parameters with more rows than the pretrained ones: how many rows those have."""


@dataclass(frozen=True)
class PretrainedWeights:
    """The weights of a folder, and how they map to a policy."""

    folder: PretrainedFolder
    names: WeightMap

    def copy_into(self, policy: nn.Module) -> bool:
        """See ``copy_weights``."""
        stored = itertools.chain.from_iterable(map(stored_tensors, self.folder.files))
        try:
            return copy_weights(policy, stored, self.names, place=str(self.folder.path))
        except OSError as error:
            raise CheckpointError(f"{self.folder.path}: unreadable or truncated ({error})") from error


def copy_weights(
    policy: nn.Module,
    tensors: Iterable[tuple[str, Tensor | StoredTensor]],
    names: WeightMap,
    *,
    place: str = "the checkpoint",
) -> bool:
    """Copy pretrained ``tensors`` straight into the parameters of ``policy``, one at a time.

    Of a sharded policy, this process reads the rows that it holds. Parameters on the meta device are compared only. If
    the policy has got adapters, they keep their weights; layers in 4 bits are rounded as their weights are read.

    Returns:
        whether the ActionHead was among them; if not, the policy's head keeps its weights.

    Raises:
        CheckpointError: a parameter is missing or has another shape; others may have been copied already.
    """
    own, copied, has_head = weights_without_adapters(policy), set(), False
    for name, value in tensors:
        plain = _WRAPPERS.sub("", name)
        has_head |= plain.startswith(_HEAD_PREFIX)
        ours = names.rename(plain)
        stored = StoredTensor.of(value) if isinstance(value, Tensor) else value
        if ours in own:
            _copy(own[ours], stored, names.first_rows.get(ours), partial(names.reshape, plain), f"{place}: {plain}")
            copied.add(ours)
        del value, stored  # before the next one is read: one at a time is in memory
    missing = [name for name in own if name not in copied and (has_head or not name.startswith(_HEAD_PREFIX))]
    if missing:
        raise CheckpointError(f"{place}: lacks {len(missing)} parameters of this geometry, the first is {missing[0]}")
    return has_head


def weights_without_adapters(policy: nn.Module) -> dict[str, Tensor | FourBitLinear]:
    """What is loaded into a policy from one without adapters, by the names there; they themselves, not copies."""
    packed = {name: module for name, module in policy.named_modules() if isinstance(module, FourBitLinear)}
    found: dict[str, Tensor | FourBitLinear] = {f"{_plain(name)}.weight": layer for name, layer in packed.items()}
    for name, tensor in policy.state_dict().items():
        owner, _, part = name.rpartition(".")
        is_packed = owner in packed and part != "bias"
        if not is_packed and ".lora_" not in name:
            found[_plain(name)] = tensor
    return found


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")


def _copy(
    target: Tensor | FourBitLinear,
    stored: StoredTensor,
    first_rows: int | None,
    reshape: Callable[[Tensor, Tensor], Tensor],
    place: str,
) -> None:
    """Copy a stored tensor into a parameter or its ``first_rows``, as far as this process holds them."""
    if isinstance(target, FourBitLinear):
        like = torch.empty(target.out_features, target.in_features, device="meta")
    else:
        like = torch.empty(target.shape, device="meta") if isinstance(target, DTensor) else target
    like = like if first_rows is None else like[:first_rows]
    probe = torch.empty(stored.shape, device="meta")
    reshaped = reshape(probe, like)
    if reshaped.shape != like.shape:
        raise CheckpointError(
            f"{place} has shape {list(reshaped.shape)}, this experiment needs {list(like.shape)}; "
            "its geometry (chunk, action or model size) is different"
        )
    if reshaped is not probe:
        stored = StoredTensor.of(reshape(stored.whole(), like))
    if isinstance(target, FourBitLinear):
        if not target.codes.is_meta:
            target.fill(stored.whole())
        return
    local, start = held_rows(target)
    if local.is_meta:
        return
    if local.dim() == 0:
        local.copy_(stored.whole())
        return
    stored.copy_rows(start, local[: max(0, len(like) - start)])


def held_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this process holds, and the number of the first: all of one that is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    local: Tensor = tensor.to_local()
    start, rows = 0, tensor.shape[0]
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_shard():
            assert placement.is_shard(0), "rows are sharded, nothing else"
            each = -(-rows // tensor.device_mesh.size(dimension))
            before = min(each * tensor.device_mesh.get_local_rank(dimension), rows)
            start, rows = start + before, min(each, rows - before)
    assert rows == len(local), "torch shards as it does in torch.chunk"
    return local, start


# --- identity --------------------------------------------------------------------------------------


def pretrained_fingerprint(place: str | Path) -> str:
    """sha256 (64 hex digits) of a pretrained folder or hub repository, independent of its location.

    It covers config.json (without provenance), tokenizer.json, and of each weight file the name, the size, the
    safetensors header (names, types and shapes) and 16 samples of 1 MiB, evenly spread from the first to the last.
    Reading a whole 7B model would take a minute at each start. Training changes every layer, so the samples distinguish
    two models; a manual edit of a few numbers may go unnoticed.

    Raises:
        CheckpointError: the folder or a file of it cannot be read.
    """
    folder = open_pretrained(str(place))
    config = {key: value for key, value in folder.config.items() if key not in _PROVENANCE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tokenizer = folder.path / "tokenizer.json"
    try:
        digest.update(hashlib.sha256(tokenizer.read_bytes() if tokenizer.exists() else b"").digest())
        for file in folder.files:
            size = file.stat().st_size
            with file.open("rb") as stream:
                digest.update(f"{file.name}\n{size}\n".encode())
                if file.suffix == ".safetensors":
                    digest.update(_header(stream, size))
                for sample in range(_SAMPLES):
                    stream.seek(max(0, size - _MIB) * sample // (_SAMPLES - 1))
                    digest.update(stream.read(_MIB))
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _header(stream: BinaryIO, size: int) -> bytes:
    """The header of a safetensors file, which follows its length (8 bytes, little-endian)."""
    return stream.read(min(int.from_bytes(stream.read(8), "little"), size))


# --- places ----------------------------------------------------------------------------------------


def _folder_of(place: str, *, with_weights: bool) -> Path:
    folder = Path(place)
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) is None or folder.exists():
        raise CheckpointError(f"{place}: no such checkpoint folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        weights = ["*.safetensors", "*.bin"] if with_weights else []
        return Path(snapshot_download(place, allow_patterns=["*.json", *weights]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{place}: no such folder here, and not available from the hub ({_first_line(error)})"
        ) from error


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.pth", "*.pt"):
        if files := sorted(folder.glob(pattern)):
            return tuple(files)
    raise CheckpointError(f"{folder}: no weights in it (*.safetensors, pytorch_model*.bin, *.pth or *.pt)")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

"""Weights from outside: Hugging Face Chameleon checkpoints and RynnVLA-002 / WorldVLA state dicts.

Both name the decoder alike. They differ in two places: the reference stores one q/k norm shared by
all heads, and it carries the continuous head. The image encoder is left to the image tokenizer.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlatrack.errors import CheckpointError
from vlatrack.models.policy import VlaPolicy

# The reference's names of the head's parameters, as patterns, and ours.
_HEAD_NAMES: tuple[tuple[str, str], ...] = (
    (r"action_token_embeddings\.weight", "queries"),
    (r"hidden_projection\.(\w+)", r"projection.\1"),
    (r"transformer_encoder\.(.+)", r"encoder.\1"),
    (r"output_projection\.model\.layer_norm1\.(\w+)", r"readout.norm_in.\1"),
    (r"output_projection\.model\.fc1\.(\w+)", r"readout.linear_in.\1"),
    (r"output_projection\.model\.mlp_resnet_blocks\.(\d+)\.ffn\.(.+)", r"readout.blocks.\1.\2"),
    (r"output_projection\.model\.layer_norm2\.(\w+)", r"readout.norm_out.\1"),
    (r"output_projection\.model\.fc2\.(\w+)", r"readout.linear_out.\1"),
)
_HEAD_PREFIX = "action_head."
_SHARED_NORM = re.compile(r"\.self_attn\.([qk])_norm\.(weight|bias)$")
_WRAPPERS = re.compile(r"^(?:module\.|_fsdp_wrapped_module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint folder, read."""

    config: Mapping[str, Any]  # its config.json
    state: Mapping[str, Tensor]
    folder: Path


def read_checkpoint(place: str) -> Checkpoint:
    """Read a checkpoint folder, or a hub repository that is in the local cache or can be fetched.

    Raises:
        CheckpointError: nothing is there, or a file is damaged.
    """
    folder = _folder_of(place)
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{config_file}: no such file; a checkpoint folder needs its config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file}: not readable JSON ({error})") from error
    files = _weight_files(folder)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_weights(file))
    return Checkpoint(config, state, folder)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, .bin, .pt or .pth; nothing but tensors is ever unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{file}: unreadable or truncated ({_first_line(error)})") from error
    except Exception as error:  # weights_only raises UnpicklingError of the pickle module, which stays unimported here
        raise CheckpointError(f"{file}: refused, it holds more than tensors ({_first_line(error)})") from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict of tensors")
    return state


def load_foreign_state(policy: VlaPolicy, state: Mapping[str, Tensor]) -> bool:
    """Copy a reference or Hugging Face Chameleon state dict into ``policy``.

    Returns:
        whether the state held the continuous head; without one the policy's head keeps its weights.

    Raises:
        CheckpointError: a parameter is missing or has another shape.
    """
    state = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    own = policy.state_dict()
    has_head = any(name.startswith(_HEAD_PREFIX) for name in state)
    adapted: dict[str, Tensor] = {}
    for name, value in state.items():
        target = own_name(name)
        if target is not None and target in own:
            adapted[target] = _fit(name, value, own[target])
    missing = [name for name in own if name not in adapted and (has_head or not name.startswith(_HEAD_PREFIX))]
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} parameters of this geometry, the first is {missing[0]}"
        )
    policy.load_state_dict(adapted, strict=False)
    return has_head


def own_name(name: str) -> str | None:
    """Our name of a reference parameter; None for what the policy has no use for (the image encoder)."""
    if name.startswith("model.vqmodel."):
        return None
    if not name.startswith(_HEAD_PREFIX):
        return f"backbone.chameleon.{name}"
    for pattern, ours in _HEAD_NAMES:
        if match := re.fullmatch(pattern, name.removeprefix(_HEAD_PREFIX)):
            return _HEAD_PREFIX + match.expand(ours)
    return None


def _fit(name: str, value: Tensor, target: Tensor) -> Tensor:
    if _SHARED_NORM.search(name) and value.ndim == 2 and target.shape[0] % value.shape[0] == 0:
        value = value.repeat_interleave(target.shape[0] // value.shape[0], dim=0)
    if name.endswith("action_token_embeddings.weight") and value.numel() == target.numel():
        value = value.view(target.shape)
    if value.shape != target.shape:
        raise CheckpointError(
            f"{name}: the checkpoint has shape {list(value.shape)}, this experiment needs {list(target.shape)}; "
            "its geometry (chunk, action or model size) is another one"
        )
    return value


def _folder_of(place: str) -> Path:
    folder = Path(place)
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) is None or folder.exists():
        raise CheckpointError(f"{place}: no such checkpoint folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{place}: no such folder here, and not available from the hub ({_first_line(error)})"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.pth", "*.pt"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"{folder}: no weights in it (*.safetensors, pytorch_model*.bin, *.pth or *.pt)")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

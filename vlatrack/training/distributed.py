"""One policy in several processes, on torch's FSDP2: sharded, replicated, or sharded in groups that replicate it.

Each process runs the same number of forward and backward passes, since each of them gathers weights and sums gradients
of all; a process without samples runs them on an idle batch. The optimiser step of a sharded policy is that of one
process with the samples of all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from vlatrack.errors import SpecError
from vlatrack.models.policy import VlaPolicy


def parallel_shape(processes: int, per_machine: int, *, shard: int | None, replicate: int | None) -> tuple[int, int]:
    """How many copies of the policy there are, and over how many processes each of them is sharded.

    Args:
        per_machine: processes on each machine; by default a copy is sharded over those, whose links are the fastest.

    Raises:
        SpecError: ``shard`` times ``replicate`` is not the number of processes.
    """
    if shard is None:
        shard = max(1, processes // replicate) if replicate is not None else per_machine
    if replicate is None:
        replicate = max(1, processes // shard)
    if shard * replicate != processes:
        raise SpecError(
            f"train.parallel: shard {shard} x replicate {replicate} is not the {processes} process"
            f"{'es' if processes > 1 else ''} of this run; correct it, or leave both out"
        )
    return replicate, shard


def process_mesh(shape: tuple[int, int], device: torch.device, *, offloads: bool = False) -> DeviceMesh | None:
    """The processes as `shape` says (see ``parallel_shape``). All ranks call this.

    Args:
        offloads: whether the policy will be in the host's memory (see ``distribute``).

    Returns:
        None for one process alone, unless it offloads: then a mesh of one, for which torch needs a process group (see
        ``process_group_of_one``).
    """
    if shape != (1, 1):
        return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, (1,), mesh_dim_names=("shard",)) if offloads else None


def distribute(policy: VlaPolicy, mesh: DeviceMesh | None, *, offload: bool = False) -> None:
    """Let this process hold its part of the policy, whose weights are the same in all processes; one alone keeps it
    as it is. All ranks call this, before the optimiser is made.

    Args:
        offload: keep parameters and gradients in the host's memory, so that the optimiser and its states are there,
            too; a layer's parameters are on the device of the mesh while the layer computes. Buffers stay on it.
    """
    if mesh is None:
        assert not offload, "offloading takes a mesh, if only of one process"
        return
    in_bf16 = any(parameter.dtype == torch.bfloat16 for parameter in policy.parameters())
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if in_bf16 else None)  # gradients are summed in fp32
    # Only a GPU copies faster from pinned memory; without one there is none.
    place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    for block in policy.backbone.blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision, offload_policy=place)
    root: Any = fully_shard(policy, mesh=mesh, mp_policy=precision, offload_policy=place)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            # The losses are divided by the counts of all ranks, so gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # Else a rank whose rows use fewer parameters than another's would sum fewer gradients, and both would hang.
    root.set_reduce_scatter_unused_params(True)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move the buffers, such as tables of positions, of a module whose parameters may be elsewhere."""
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def part_for(like: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, sharded as ``like`` is; the tensor itself if that is not sharded."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to(like.device)


def local_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor, sharded or not, without a graph; it shares the tensor's memory."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm [] of all these gradients, over all ranks if they are sharded. All ranks call this."""
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):  # torch would round each norm to bf16
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm: Any = torch.linalg.vector_norm(torch.stack(norms))
    else:
        norm = get_total_norm(gradients)
    total: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return total

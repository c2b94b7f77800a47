"""One of several ranks: builds a policy from pretrained weights as a training does, and says what it took.

Arguments: a file for rank 0, and the words of the experiment, as for `vlatrack run`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.builders.unfilled import build_unfilled_policy
from vlatrack.models.backbones.pretrained import held_rows
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_spec
from vlatrack.training.distributed import distribute, process_mesh
from vlatrack.training.process_group import ProcessGroup

CPU = torch.device("cpu")


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most since the last time that this was asked for."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status[what].split()[0])


def build(spec: ExperimentSpec, group: ProcessGroup) -> VlaPolicy:
    source = backbone_factory(spec).open()
    if group.world_size == 1:
        return build_policy(spec, source)
    policy, fill = build_unfilled_policy(spec, source)
    distribute(policy, process_mesh((1, group.world_size), CPU))
    fill(CPU)
    return policy


def main(file: Path, example: str, *words: str) -> None:
    group = ProcessGroup()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from vlatrack.training.torch_process_group import TorchProcessGroup

        group = TorchProcessGroup.join()
    spec = load_spec(example, words)
    tiny = load_spec(example)
    # Imports the rest.
    distribute(build_policy(tiny, backbone_factory(tiny).open()), process_mesh((1, group.world_size), CPU))
    before = memory("VmRSS")
    policy = build(spec, group)
    peak = memory("VmHWM") - before
    held = sum(held_rows(parameter)[0].numel() * parameter.element_size() for parameter in policy.parameters())
    parts = policy.state_dict().items()
    gathered = {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in parts}
    buffers = dict(policy.named_buffers())
    expected = build_policy(spec, backbone_factory(spec).open())
    different = [name for name, value in expected.state_dict().items() if not torch.equal(value, gathered[name])]
    different += [name for name, value in expected.named_buffers() if not torch.equal(value, buffers[name])]
    results = group.all_gather({"peak": peak, "held": held, "different": different})
    if group.is_main_process:
        file.write_text(json.dumps(results))
    if group.world_size > 1:
        group.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

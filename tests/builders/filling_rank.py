"""One of several ranks: builds a policy from pretrained weights as a training does, and says what it took.

Arguments: a file for rank 0, and the words of the experiment, as for `vlatrack run`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.token_store import TokenStore
from vlatrack.models.backbones.four_bits import weights_of
from vlatrack.models.backbones.pretrained import held_rows
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.run import initial_policy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_spec
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.distributed import distribute, process_mesh
from vlatrack.training.process_group import ProcessGroup

CPU = torch.device("cpu")


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most since the last time that this was asked for."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status[what].split()[0])


def experiment_of(spec: ExperimentSpec) -> Experiment:
    """As it is when the weights are wanted, without data."""
    stored = initial_policy(spec)
    source = backbone_factory(spec).open() if stored is None else stored.source(spec)
    return Experiment(
        spec, {}, NormStats(ValueRange((-1.0,), (1.0,)), None), source, stored, False, {}, TokenStore(Path("store"))
    )


def build(experiment: Experiment, group: ProcessGroup) -> VlaPolicy:
    unfilled = experiment.unfilled_policy()
    assert unfilled is not None, "its weights are those of a file"
    policy, fill = unfilled
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
    tiny = tiny.model_copy(
        update={"backbone": tiny.backbone.model_copy(update={"adapter": spec.backbone.adapter}), "train": spec.train}
    )
    # Imports the rest.
    distribute(build_policy(tiny, backbone_factory(tiny).open()), process_mesh((1, group.world_size), CPU))
    experiment = experiment_of(spec)
    before = memory("VmRSS")
    policy = build(experiment, group)
    peak = memory("VmHWM") - before
    held = sum(held_rows(weight)[0].numel() * weight.element_size() for weight in weights_of(policy))
    parts = policy.state_dict().items()
    gathered = {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in parts}
    buffers = dict(policy.named_buffers())
    drawn = torch.get_rng_state()
    expected = experiment.policy(CPU)
    different = [] if torch.equal(drawn, torch.get_rng_state()) else ["what is drawn next"]
    different += [name for name, value in expected.state_dict().items() if not torch.equal(value, gathered[name])]
    different += [name for name, value in expected.named_buffers() if not torch.equal(value, buffers[name])]
    results = group.all_gather({"peak": peak, "held": held, "different": different})
    if group.is_main_process:
        file.write_text(json.dumps(results))
    if group.world_size > 1:
        group.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

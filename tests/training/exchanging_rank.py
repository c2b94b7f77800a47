"""One of two ranks: makes every exchange once and writes what came out as JSON, to the folder that it is told."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from vlatrack.metrics.states import MetricStates
from vlatrack.training.process_group import RankLostError
from vlatrack.training.torch_process_group import TorchProcessGroup

group = TorchProcessGroup.join()
first = group.is_main_process
out = Path(sys.argv[1])

measured = (
    {"speed": 1.0, "wait": 5.0, "alone": 7.0, "memory": 2.0}
    if first
    else {"memory": 3.0, "other": 11.0, "wait": 7.0, "speed": 4.0}
)
rules = {"speed": "sum", "wait": "mean", "memory": "max", "alone": "sum", "other": "mean"}

layer = nn.Linear(2, 2)
nn.init.constant_(layer.weight, 1.0 if first else 2.0)
group.broadcast_weights(layer)

# The first rank has had no action rows yet: its states lack the name that the other has.
states = {"closs": (torch.tensor(1.0 if first else 4.0), 2.0)} | ({} if first else {"head": (torch.ones(2, 1), 3.0)})

order = []
with group.main_process_first():
    if not first:
        order.append((out / "first was here").exists())
    (out / "first was here").touch()

result = {
    "combined": group.combine(measured, rules),
    "gathered": group.all_gather(group.rank),
    "broadcast": group.broadcast(f"of {group.rank}"),
    "total": group.sum([1, group.rank]),
    "states": {
        name: [state.total.tolist(), state.count.tolist()]
        for name, state in group.sum_states(MetricStates.of(states)).items()
    },
    "share": group.shard([1, 2, 3]),
    "share_of_one": group.shard([1]),
    "on_device": group.sum_on_device(torch.tensor(1.0 if first else 2.0)).item(),
    "largest_share_of_three": group.largest_shard(3),
    "weight": layer.weight.unique().tolist(),
    "second_found_first": order,
    "gone": group.lost_ranks(),
}
(out / f"{group.rank}.json").write_text(json.dumps(result))
if not first:
    try:
        group.sum([1.0])
    except RankLostError as error:
        (out / "lost.txt").write_text(str(error))
group.leave(failed=not first)

"""One of two ranks: makes every exchange once and writes what came out as JSON, to the folder that it is told."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from vlatrack.metrics.states import MetricStates
from vlatrack.training.process_group import GroupRanks
from vlatrack.training.ranks import RankLostError

ranks = GroupRanks.join()
first = ranks.is_first
out = Path(sys.argv[1])

measured = (
    {"speed": 1.0, "wait": 5.0, "alone": 7.0, "memory": 2.0}
    if first
    else {"memory": 3.0, "other": 11.0, "wait": 7.0, "speed": 4.0}
)
rules = {"speed": "sum", "wait": "mean", "memory": "max", "alone": "sum", "other": "mean"}

shared, single, unused = (nn.Parameter(torch.zeros(3)) for _ in range(3))
shared.grad = torch.full((3,), 1.0 if first else 2.0)
if not first:
    single.grad = torch.full((3,), 5.0)
ranks.sum_gradients([shared, single, unused])

layer = nn.Linear(2, 2)
nn.init.constant_(layer.weight, 1.0 if first else 2.0)
ranks.copy_weights(layer)

states = {"both": (torch.tensor([[0.0], [1.0 if first else 4.0]]), 1)}
if not first:
    states["second"] = torch.tensor(2.0), 3

order = []
with ranks.first_before_others():
    if not first:
        order.append((out / "first was here").exists())
    (out / "first was here").touch()

result = {
    "combined": ranks.combine(measured, rules),
    "gathered": ranks.gather(ranks.number),
    "from_first": ranks.from_first(f"of {ranks.number}"),
    "total": ranks.total([1, ranks.number]),
    "total_sums": {k: [s.total.tolist(), s.count.item()] for k, s in ranks.total_sums(MetricStates.of(states)).items()},
    "share": ranks.share([1, 2, 3]),
    "share_of_one": ranks.share([1]),
    "gradients": [None if p.grad is None else p.grad.tolist() for p in (shared, single, unused)],
    "weight": layer.weight.unique().tolist(),
    "second_found_first": order,
    "gone": ranks.gone(),
}
(out / f"{ranks.number}.json").write_text(json.dumps(result))
if not first:
    try:
        ranks.total([1.0])
    except RankLostError as error:
        (out / "lost.txt").write_text(str(error))
ranks.leave(failed=not first)

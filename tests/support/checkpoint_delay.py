"""How long a checkpoint holds up the training, written beside it and written before it goes on.

`python tests/support/checkpoint_delay.py --layers 12` trains a stack of square layers and prints, for both ways, the
seconds for which a checkpoint blocks the thread that trains, the share of that in the first one (whose copies need new
memory), and after how many seconds of training the next checkpoint may come if 2 % are to be lost at most.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.saving import RunCheckpoints
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState

WIDTH, ROWS, STEPS = 2048, 32, 10


def blocked(folder: Path, layers: int, saves: int, *, asynchronous: bool) -> tuple[list[float], list[float], float]:
    """For each checkpoint, the seconds that it blocks and those of the main thread's CPU time in them; and GB of it."""
    policy = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
    parts = TrainingParts(policy, optimizer, ProcessGroup(), lambda folder: None)
    store = CheckpointStore(folder)
    checkpoints = RunCheckpoints(store, parts, keep_last=1, callbacks=[], asynchronous=asynchronous)
    wall, cpu = [], []
    for save in range(1, saves + 1):
        lost, lost_cpu = 0.0, 0.0
        for step in range(STEPS):
            policy(torch.randn(ROWS, WIDTH)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            began, began_cpu = time.perf_counter(), time.thread_time()
            checkpoints.poll()
            if step == 0:
                checkpoints.save(TrainState(step=save))
            lost += time.perf_counter() - began
            lost_cpu += time.thread_time() - began_cpu
        while checkpoints._saving is not None and not checkpoints._saving.written.done():
            time.sleep(0.01)  # as if the next one came late enough
        wall.append(lost)
        cpu.append(lost_cpu)
    checkpoints.wait()
    size = sum(file.stat().st_size for file in store.all()[-1].rglob("*.safetensors"))
    return wall, cpu, size / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--saves", type=int, default=4)
    chosen = parser.parse_args()
    for asynchronous in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu, size = blocked(Path(folder), chosen.layers, chosen.saves, asynchronous=asynchronous)
        usual = statistics.median(wall[1:])
        print(
            f"{'beside' if asynchronous else 'before'} the training: {size:.2f} GB, blocked {usual:.3f} s (first "
            f"{wall[0]:.3f} s; CPU {statistics.median(cpu[1:]):.3f} s), 2 % of {50 * usual:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

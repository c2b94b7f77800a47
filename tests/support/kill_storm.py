"""A training that is killed again and again, and goes on each time until it is done.

`python tests/support/kill_storm.py --kills 20` kills a training of two processes with SIGKILL so many times, at random
moments and in the middle of saving, one process or all of them, has it resumed by `--resume auto` with the same number
of processes or with 1, 2 and 3 by turns, and says how far its losses are from those of a training that nothing kills.
"""

import argparse
import contextlib
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launching import Process, start_vlatrack
from program import ENVIRONMENT, TOY

from vlatrack.tracking.journal.history import metric_history, run_status
from vlatrack.training.checkpoint.manifest import check_files, read_manifest
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.throughput import SPEEDS

EXPERIMENT = (
    *("data.sample_every=3", "tracking.log_every=1", "tracking.system_every_s=null", "evaluate.open_loop=null"),
    *("train.checkpoint.every_steps=1", "optim.lr=1e-4"),
)
WITHOUT_DROPOUT = ("backbone.residual_dropout=0", "action_head.dropout=0")
"""Another number of processes draws other masks."""

PATIENCE_S = 240.0


@dataclass(frozen=True)
class Storm:
    """What a storm left."""

    run: Path
    kills: int
    while_saving: int  # so many kills met an unfinished checkpoint
    lives: int  # how often the run was started


def uninterrupted(folder: Path, steps: int, *, processes: int, settings: Sequence[str]) -> Path:
    """The training that nothing kills."""
    with _ranks(folder, processes, _command(steps, settings)) as ranks:
        for rank in ranks:
            rank.wait(PATIENCE_S)
    return finished_run(folder)


def storm(folder: Path, steps: int, *, kills: int, resumed_with: Sequence[int], settings: Sequence[str]) -> Storm:
    """Two processes begin; after each kill so many others go on, by turns. The last of them finish the run."""
    chance, done, met, lives = random.Random(7), 0, 0, 0
    while not (runs := _finished(folder)):
        processes = 2 if lives == 0 else resumed_with[(lives - 1) % len(resumed_with)]
        lives += 1
        assert lives < 3 * kills + 9, "the run does not get on"
        with _ranks(folder, processes, _command(steps, settings)) as ranks:
            if done < kills and _await_moment(folder, ranks, chance):
                met += bool(_unfinished(folder))
                done += 1
                for rank in ranks if chance.random() < 0.5 else [chance.choice(ranks)]:
                    rank.kill()
            for rank in ranks:
                rank.wait(PATIENCE_S)
    return Storm(runs[0], done, met, lives)


def finished_run(folder: Path) -> Path:
    (run,) = _finished(folder)
    return run


def furthest_loss(run: Path, expected: Path) -> float:
    """The largest relative difference of a training metric, over all steps; they have the same steps and metrics."""
    one, other = (_metrics(path) for path in (run, expected))
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max(abs(one[key] - other[key]) / max(abs(other[key]), 1e-3) for key in one)


def check_nothing_is_left(run: Path) -> None:
    """Every checkpoint is whole, and nothing else is beside them."""
    store = CheckpointStore(run / "checkpoints")
    names = {path.name for path in store.folder.iterdir()} - {".checked", "rewound"}
    assert names == {path.name for path in store.all()}
    assert len(names) <= 3
    for checkpoint in store.all():
        check_files(checkpoint, read_manifest(checkpoint))


def _metrics(run: Path) -> dict[tuple[str, int], float]:
    return {
        (name, step): value
        for name, values in metric_history(run / "journal.jsonl").items()
        if name.startswith("train_") and not name.endswith(tuple(SPEEDS))
        for step, value in values
    }


def _command(steps: int, settings: Sequence[str]) -> list[str]:
    options = [*EXPERIMENT, *settings, f"train.max_steps={steps}", "train.epochs=99"]
    return ["run", str(TOY), *options, "--resume", "auto"]


@contextlib.contextmanager
def _ranks(folder: Path, processes: int, command: list[str]) -> Iterator[list[Process]]:
    """The processes of one training, as torchrun would start them, without torchrun in between."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = []
    with (folder / "output.txt").open("ab") as output:
        for rank in range(processes):
            many = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = os.environ | ENVIRONMENT | {name: str(value) for name, value in (many | place).items()}
            ranks.append(start_vlatrack(*command, cwd=folder, env=environment, stdout=output, stderr=output))
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _await_moment(folder: Path, ranks: Sequence[Process], chance: random.Random) -> bool:
    """Wait for a random moment after the next checkpoint; False if the training ends before it."""
    known = _checkpoints(folder)
    if not _until(lambda: _checkpoints(folder) - known, ranks):
        return False
    if chance.random() < 0.5 and not _until(lambda: _unfinished(folder), ranks):
        return False
    time.sleep(chance.uniform(0.0, 0.3))
    return all(rank.poll() is None for rank in ranks)


def _until(happens: Callable[[], object], ranks: Sequence[Process]) -> bool:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if happens():
            return True
        if any(rank.poll() is not None for rank in ranks):
            return False
        time.sleep(0.001)
    raise TimeoutError("nothing happens")


def _checkpoints(folder: Path) -> set[Path]:
    return set((folder / "runs").glob("*/*/checkpoints/step-*"))


def _unfinished(folder: Path) -> list[Path]:
    return list((folder / "runs").glob("*/*/checkpoints/.step-*.unfinished"))


def _finished(folder: Path) -> list[Path]:
    journals = (folder / "runs").glob("*/*/journal.jsonl")
    return [path.parent for path in journals if run_status(path.parent).status == "FINISHED"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=90)
    chosen = parser.parse_args()
    for resumed_with, settings in (((2,), ()), ((1, 2, 3), WITHOUT_DROPOUT)):
        folder = Path(tempfile.mkdtemp(prefix="kill-storm-"))
        (folder / "whole").mkdir()
        (folder / "killed").mkdir()
        whole = uninterrupted(folder / "whole", chosen.steps, processes=2, settings=settings)
        told = storm(folder / "killed", chosen.steps, kills=chosen.kills, resumed_with=resumed_with, settings=settings)
        check_nothing_is_left(told.run)
        print(
            f"{told.kills} kills, {told.while_saving} of them while saving, {told.lives} starts, resumed with "
            f"{resumed_with}: furthest from the whole run {furthest_loss(told.run, whole):.3g}",
            flush=True,
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

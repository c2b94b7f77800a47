"""Processes that divide an evaluation in which nothing is simulated, and that are killed at random moments."""

import random
import subprocess
import sys
from pathlib import Path

WORKER = """
import os, random, sys, time
from pathlib import Path
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.rows import EpisodeRow
from vlatrack.runner.evaluation_folder import EvaluationFolder

order = [EpisodeId("push", str(number), str(number)) for number in range(int(sys.argv[2]))]
description = {"set": {}, "versions": {}, "acting": {}, "policy_sha256": "a", "forced": []}
folder, notes = EvaluationFolder.open(Path(sys.argv[1], "results"), description, order), Path(sys.argv[1], "notes")
while not folder.is_complete:
    for number in iter(folder.claim, None):
        with (notes / str(number)).open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(random.uniform(0, 0.02))
        folder.append(EpisodeRow.of(order[number], "success", steps=number, reward=0.0, latencies=[]))
    time.sleep(0.01)
    folder.refresh()
with folder.finishing():
    folder.finish(folder.rows, {"episodes": len(folder.rows)})
folder.close()
"""


def divide(folder: Path, episodes: int, *, kills: int, seed: int, processes: int = 3) -> list[int]:
    """Have so many processes run the episodes, and kill one of them with SIGKILL and start another, again and again.

    Returns:
        the exit codes of those that were not killed.
    """
    (folder / "notes").mkdir(parents=True)
    chance = random.Random(seed)

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(episodes)])

    running = [start() for _ in range(processes)]
    try:
        for _ in range(kills):
            victim = running[chance.randrange(processes)]
            try:
                victim.wait(chance.uniform(0, 0.8))
            except subprocess.TimeoutExpired:
                victim.kill()
                victim.wait()
            running[running.index(victim)] = start()
        return [process.wait(120) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()

"""What a storm is: a strike at a run, at random moments; and the storm from start to verdict."""

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oracle import Outcome
from storm_rig import Rig, Runner, StormRun
from storm_trainer import Training

TMPFS = "size=48m"
NOBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "TMPDIR", "XDG_CONFIG_HOME")
SECOND_WANDB = ({"mode": "offline"}, {"mode": "online", "project": "elsewhere"})


PLAIN = Training()


class CannotRageHereError(Exception):
    """This machine does not allow the storm; the text says why."""


@dataclass(frozen=True)
class Moments:
    """When a storm strikes, and for how long (seconds)."""

    rng: random.Random
    sqlite_locked_s: float = 30.0

    def pause(self, longest_s: float) -> None:
        time.sleep(self.rng.uniform(0, longest_s))


Strike = Callable[[StormRun, Moments], None]


@dataclass(frozen=True)
class Scene:
    """A kind of storm."""

    name: str
    strike: Strike
    training: Training = PLAIN
    local_mlflow: bool = False
    tmpfs: bool = False
    second_wandb: bool = False
    nameless: bool = False
    """Everything runs as a user without a name, without HOME and TMPDIR."""


def rage(scene: Scene, rig: Rig, seed: int, *, sqlite_locked_s: float = 30.0) -> Outcome:
    """One storm, from start to the oracle's verdict. Raises CannotRageHereError."""
    at = Moments(random.Random(f"{scene.name} {seed}"), sqlite_locked_s)
    uid = f"{''.join(c if c.isalnum() else '-' for c in scene.name)}-{seed}"
    second_wandb = at.rng.choice(SECOND_WANDB) if scene.second_wandb else None
    runner = _nobody() if scene.nameless else Runner()
    with _runs_folder(scene, rig.folder / uid) as runs:
        run = StormRun(rig, uid, runs=runs, local_mlflow=scene.local_mlflow, second_wandb=second_wandb, runner=runner)
        try:
            run.train(scene.training)
            scene.strike(run, at)
            rig.calm()
            run.await_complete()
            outcome = run.outcome()
            if not outcome.clean:
                print(run.last_words(), flush=True)
            return outcome
        finally:
            rig.calm()
            run.end()


def _nobody() -> Runner:
    """A user id that /etc/passwd does not know, in a user namespace: its files are root's outside."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode
    ):
        raise CannotRageHereError("user namespaces cannot be made here (root is needed)")
    return Runner(prefix=NOBODY, without=NAMES)


@contextlib.contextmanager
def _runs_folder(scene: Scene, folder: Path) -> Iterator[Path | None]:
    if not scene.tmpfs:
        yield None
        return
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", TMPFS, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise CannotRageHereError("a tmpfs cannot be mounted here (root is needed)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

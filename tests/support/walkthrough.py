"""The shell blocks of a page, carried out from its top to its bottom in a folder like a fresh checkout.

The commands stand in the page as they are carried out. What is smaller is what they work on: experiments/ has the
repository's files with a small part of the data, so that a training takes steps instead of minutes.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from documents import ROOT, Block, blocks
from launching import running

SUPPORT = Path(__file__).parent
TWO_TASKS = {  # in which the gripper has both of its positions
    "tasks": ["press the button of the coffee machine", "press the button from above"],
    "exclude_tasks": [],
    "cap": 14,
}
SMALL: dict[str, Any] = {
    "tokenizer": {"image": {"image_size": 64, "encoder": "squares", "codebook_size": 16, "fit_frames": 40}},
    "data": {"sample_every": 40, "train": TWO_TASKS, "val_ind": TWO_TASKS},
    "train": {"epochs": 2, "batch_size": 8},
    "evaluate": {"open_loop": {"max_samples": 4}, "details": {"frames": 0, "generated": 0, "trajectories": 1}},
    "tracking": {"backends": [], "figures": False, "log_every": 1},
}
"""Laid over an experiment: a training with it has a handful of steps an epoch."""
STANDS_FOR = (
    (r"runs/<experiment>/<run-id>|runs/metaworld-quickstart/20260101-120000-ab12", "RUN"),
    (r"(?<![\w$/{])RUN_A(?!\w|=)", "{a}"),
    (r"(?<![\w$/{])(?:RUN_B|RUN)(?!\w|=)", "{b}"),
    (r"/data/runs", "runs"),
    (r"\b8000\b", "{port}"),
)
"""What a reader puts in place of what a page shows."""


@dataclass(frozen=True)
class Checkout:
    """A folder with experiments/ and two runs, RUN_A and RUN_B, of which A is the newest and trained longer."""

    folder: Path
    run_a: str
    run_b: str


def overlaid(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: overlaid(below.get(key), value) for key, value in above.items()}


def write_experiments(folder: Path) -> None:
    """The files of the repository, those that are trained in the walk with little to do."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    for name, change in (
        ("quickstart.yaml", SMALL | {"data": SMALL["data"] | {"val_ood": {"tasks": ["close the door"]}}}),
        ("sweeps/quickstart.yaml", {"trials": 2}),
        ("evaluation/metaworld.yaml", {"episodes": 1, "max_steps": 8, "suite": {"tasks": ["coffee-button-v3"]}}),
    ):
        file = folder / "experiments" / name
        file.write_text(yaml.safe_dump(overlaid(yaml.safe_load(file.read_text()), change)))
    shutil.copy(folder / "experiments" / "quickstart.yaml", folder / "exp.yaml")


def write_episodes(folder: Path) -> None:
    """Of two policies: new.csv with 46 successes in 50 episodes, old.csv with 33 of the same."""
    for name, successes in (("new", 46), ("old", 33)):
        rows = [f"lift,{number},{number},{'success' if number < successes else 'failure'}" for number in range(50)]
        (folder / f"{name}.csv").write_text("\n".join(["task,initial_state,seed,outcome", *rows]) + "\n")


def write_programs(folder: Path) -> None:
    """What is on the path of somebody who has activated .venv."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    warm = f'exec "{sys.executable}" -S -E "{SUPPORT / "stand_in.py"}" "$@"\n'
    real = Path(sys.executable).parent
    scripts = {
        "vlatrack": warm,
        "python": f'if [ "${{1-}} ${{2-}}" = "-m vlatrack" ]; then shift 2; {warm}fi\nexec "{sys.executable}" "$@"\n',
        **{name: f'exec "{real / name}" "$@"\n' for name in ("torchrun", "accelerate")},
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}")
        (programs / name).chmod(0o755)


def carried_out(block: Block) -> bool:
    if block.not_run == "needs a simulator":
        return importlib.util.find_spec("metaworld") is not None
    return block.not_run is None


def files_of(page: Path) -> dict[str, str]:
    """What a page tells to save, by its first line: a YAML block that begins with `# my-robot.yaml`."""
    named = ((re.match(r"# (\S+\.yaml)\n", block.code), block.code) for block in blocks(page, "yaml"))
    return {match[1]: yaml.safe_dump(overlaid(yaml.safe_load(code), SMALL)) for match, code in named if match}


def script_of(page: Path, checkout: Checkout, port: int) -> str:
    """The commands of a page, each block behind its place in the page."""
    script = ["set -euo pipefail"]
    for block in filter(carried_out, blocks(page, "sh")):
        code = block.code
        for shown, meant in STANDS_FOR:
            code = re.sub(shown, meant.format(a=checkout.run_a, b=checkout.run_b, port=port), code)
        script += [f"echo '### {block}'", code]
    return "\n".join(script)


class Walk:
    """Carries out scripts in one folder, and ends what they have left running."""

    def __init__(self, folder: Path, warm: Path) -> None:
        self.folder = folder
        self._state = folder / ".walk"
        self._state.mkdir()
        (self._state / "warm").symlink_to(warm)
        self._environment = self.environment_of(self._state) | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}

    @staticmethod
    def environment_of(home: Path) -> dict[str, str]:
        """Of somebody who has no files and no accounts yet."""
        nobody = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "MLFLOW_DISABLE_TELEMETRY": "true"}
        return os.environ | nobody | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WALK_FOLDER": str(home)}

    def run(self, *command: str, timeout_s: float = 800) -> str:
        """What it says. Raises AssertionError with that if it fails."""
        said = self._state / "said.txt"
        with (
            said.open("w") as output,
            running(
                command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ) as process,
        ):
            try:
                code: int | str = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                code = f"none after {timeout_s} s"
        assert code == 0, f"exit code {code}\n{said.read_text()[-6000:]}"
        return said.read_text()

    def close(self) -> None:
        """Press Ctrl-C in each terminal where something still runs. Raises AssertionError unless all end with 0."""
        servers = self._state / "servers"
        lines = servers.read_text().splitlines() if servers.exists() else []
        groups, codes = [int(line.split()[0]) for line in lines], [Path(line.split()[1]) for line in lines]
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGINT)
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and not all(file.exists() and file.read_text() for file in codes):
            time.sleep(0.05)
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        ends = [file.read_text().strip() if file.exists() else "none" for file in codes]
        assert set(ends) <= {"0"}, [file.with_suffix(".txt").read_text()[-2000:] for file in codes]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

"""The program as a real process on a toy dataset."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launching import Process, end_family, start_python, start_torchrun, start_vlatrack
from preloaded import ENVIRONMENT, SUPPORT

TOY = SUPPORT / "toy.yaml"


class Program:
    """Starts `vlatrack` and ends what is still running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    @property
    def environment(self) -> dict[str, str]:
        """Of what it starts."""
        return os.environ | ENVIRONMENT

    def start(self, *arguments: str | Path, **environment: str) -> Process:
        """In a process group of its own, as a shell starts it: what Ctrl-C reaches in a terminal."""
        return self._keep(start_vlatrack(*arguments, **self._options(environment)))

    def start_many(
        self, *arguments: str | Path, processes: int = 2, script: Path | None = None, **environment: str
    ) -> Process:
        """As torchrun starts it; `script` stands in for `-m vlatrack`."""
        program = ["-m", "vlatrack"] if script is None else [script]
        options = self._options({"OMP_NUM_THREADS": "1"} | environment)
        return self._keep(start_torchrun(*program, *arguments, processes=processes, **options))

    def start_script(self, *words: str | Path) -> Process:
        return self._keep(start_python(*words, **self._options({})))

    def _options(self, environment: Mapping[str, str]) -> dict[str, Any]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return {"cwd": self.folder, "env": os.environ | ENVIRONMENT | environment, **streams}

    def _keep(self, process: Process) -> Process:
        self._started.append(process)
        return process

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return _outcome(self.start(*arguments))

    def run_many(
        self, *arguments: str | Path, processes: int = 2, script: Path | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return _outcome(self.start_many(*arguments, processes=processes, script=script, **environment))

    def run_accelerated(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """By two processes of accelerate, which calls them GPUs on a machine without any, too."""
        launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        command = [sys.executable, "-m", *launch, "-m", "vlatrack", *map(str, arguments)]
        return _outcome(self._keep(subprocess.Popen(command, text=True, process_group=0, **self._options({}))))

    def only_run(self) -> Path:
        specs = list((self.folder / "runs").glob("*/*/spec.yaml"))  # beside the runs, MLflow's own folders
        assert len(specs) == 1, specs
        return specs[0].parent

    def close(self) -> None:
        for process in self._started:
            end_family(process)


def _outcome(process: Process) -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=250)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finish_of(run: Path) -> dict[str, Any]:
    """How the run ended, as its journal says: the data of its last finish record."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [record["data"] for record in records if record["kind"] == "finish"][-1]

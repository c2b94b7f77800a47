"""The program as a real process on a toy dataset."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from launching import end_family, torchrun
from preloaded import PreloadedPopen, is_like_the_server

SUPPORT = Path(__file__).parent
TOY = SUPPORT / "toy.yaml"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])]),
    "PYTHONWARNINGS": "error:undeclared metric",  # by its text: the filters are read before vlatrack can be imported
}


class Program:
    """Starts `vlatrack` and ends what is still running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        """Of what it starts."""
        return os.environ | ENVIRONMENT

    def start(self, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
        """In a process group of its own, as a shell starts it: what Ctrl-C reaches in a terminal."""
        if is_like_the_server(os.environ | ENVIRONMENT | environment):
            return self._start(list(map(str, arguments)), PreloadedPopen, **environment)
        return self._start([sys.executable, "-m", "vlatrack", *map(str, arguments)], **environment)

    def start_many(
        self, *arguments: str | Path, processes: int = 2, script: Path | None = None, **environment: str
    ) -> "subprocess.Popen[str]":
        """As torchrun starts it; `script` stands in for `-m vlatrack`."""
        program = ["-m", "vlatrack"] if script is None else [str(script)]
        return self._start(torchrun(*program, *arguments, processes=processes), OMP_NUM_THREADS="1", **environment)

    def _start(
        self, command: list[str], popen: type["subprocess.Popen[str]"] = subprocess.Popen, **environment: str
    ) -> "subprocess.Popen[str]":
        process = popen(
            command,
            cwd=self.folder,
            env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
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
        return _outcome(self._start([sys.executable, "-m", *launch, "-m", "vlatrack", *map(str, arguments)]))

    def only_run(self) -> Path:
        specs = list((self.folder / "runs").glob("*/*/spec.yaml"))  # beside the runs, MLflow's own folders
        assert len(specs) == 1, specs
        return specs[0].parent

    def close(self) -> None:
        for process in self._started:
            end_family(process)


def _outcome(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=250)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finish_of(run: Path) -> dict[str, Any]:
    """How the run ended, as its journal says: the data of its last finish record."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [record["data"] for record in records if record["kind"] == "finish"][-1]

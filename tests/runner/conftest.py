"""The program as a real process on a toy dataset."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOY = HERE / "toy.yaml"


class Program:
    """Starts `vlatrack` and ends what is still running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """In a process group of its own, as a shell starts it: what Ctrl-C reaches in a terminal."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)])}
        process = subprocess.Popen(
            [sys.executable, "-m", "vlatrack", *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        out, err = process.communicate(timeout=150)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def only_run(self) -> Path:
        runs = list((self.folder / "runs").glob("*/2*"))
        assert len(runs) == 1, runs
        return runs[0]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.close()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A toy run that went from start to end."""
    program = Program(tmp_path_factory.mktemp("finished"))
    done = program.run("run", TOY)
    assert done.returncode == 0, done.stderr
    yield program.only_run()
    program.close()


@pytest.fixture
def journal_of() -> Callable[[Path], list[dict]]:
    return lambda run: [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]

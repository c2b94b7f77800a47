"""Jobs of the toy experiment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from program import TOY
from typer.testing import CliRunner, Result

FAKE_SBATCH = """#!/bin/sh
cp "$1" "{folder}/script.sh"
echo "$@" > "{folder}/arguments"
{answer}
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts an sbatch on the path that keeps what it is given and answers so; returns where it keeps that."""

    def put(answer: str = "echo Submitted batch job 4711") -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "sbatch"
        program.write_text(FAKE_SBATCH.format(folder=folder, answer=answer))
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder

    return put


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`vlatrack submit` of the toy experiment in this process, with an empty folder as the working directory."""
    from vlatrack.cli.main import app

    monkeypatch.chdir(tmp_path)

    def call(*words: str, file: Path | None = TOY) -> Result:
        files = [] if file is None else [str(file)]
        return CliRunner().invoke(app, ["submit", *files, *words])

    return call

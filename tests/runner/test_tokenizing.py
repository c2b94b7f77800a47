"""Frames can be encoded before a run: by one process or several, on one machine or a cluster."""

import signal
from pathlib import Path

import pytest
from program import TOY, Program

FRAMES = "encoded "
NOTHING = "nothing to encode: all frames are there"


def told(program: Program, *words: str, processes: int | None = None) -> str:
    command = ("data", "tokenize", TOY, *words)
    process = program.start(*command) if processes is None else program.start_many(*command, processes=processes)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.mark.slow
def test_what_was_encoded_before_is_what_a_run_uses(program: Program, tmp_path: Path) -> None:
    assert FRAMES in told(program)
    assert NOTHING in told(program)
    assert NOTHING in told(program, "--verify")
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / ".cache" / "data").rglob("*.arrow")}
    run = program.start("run", TOY, "train.max_steps=2")
    assert run.wait(timeout=300) == 0
    assert {file: file.stat().st_mtime_ns for file in shards} == shards
    assert len(list((tmp_path / "runs" / ".cache" / "data").rglob("*.arrow"))) == len(shards)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workers", "torchrun", "ray"])
def test_several_processes_encode_what_one_does(program: Program, tmp_path: Path, how: str) -> None:
    if how == "ray":
        pytest.importorskip("ray")
    assert FRAMES in told(program, "--runs", "one")
    match how:
        case "workers":
            output = told(program, "--runs", "several", "--workers", "2")
        case "torchrun":
            output = told(program, "--runs", "several", processes=2)
        case "ray":
            output = told(program, "--runs", "several", "--ray")
    assert FRAMES in output or how == "torchrun", "one rank may have done everything before the other began"
    one, several = (
        {file.relative_to(tmp_path / runs): file.read_bytes() for file in (tmp_path / runs).rglob("*.arrow")}
        for runs in ("one", "several")
    )
    assert one == several


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(program: Program, tmp_path: Path) -> None:
    import psutil

    process = program.start("data", "tokenize", TOY, "--workers", "2")
    workers: list[psutil.Process] = []
    while not workers and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert workers
    workers[0].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "killed, perhaps for memory" in errors

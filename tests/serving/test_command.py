"""`vlatrack serve` as a process, and what it says before it starts."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from program import TOY, Program
from toy_source import ToySource

import vlatrack
from vlatrack import Observation, Policy, Session
from vlatrack.cli import serve as command
from vlatrack.errors import MissingPackageError, ServingError
from vlatrack.evaluation.comparison import success_rate
from vlatrack.importers.episodes import read_episodes
from vlatrack.serving import packages
from vlatrack.serving.client import PolicyClient

SUPPORT = Path(__file__).parents[1] / "support"
SHORT = ("train.max_steps=2", "data.history=2", "evaluate.open_loop=null", "tracking.system_every_s=null")
EPISODE = ToySource().episodes()[0]
FRAMES = ToySource().frames(EPISODE, "front")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=tmp_path_factory.mktemp("served")).path


@pytest.fixture
def program(tmp_path: Path):
    started = Program(tmp_path)
    yield started
    started.close()


def wait_for_address(process) -> tuple[str, str]:
    """What it prints until it serves, and its address."""
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("serving "):
            return said, line.split()[1]
    raise AssertionError(said + process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_served_policy_acts_as_it_does_here_until_a_signal_ends_it(program: Program, run: Path, ending) -> None:
    process = program.start("serve", run, "--port", "0", "--device", "cpu", "--api-key-env", "KEY", KEY="a secret")
    said, address = wait_for_address(process)
    here = Policy.load(run, device="cpu")
    with PolicyClient(address, api_key="a secret") as client:
        assert client.metadata["policy_sha256"] == here.sha256
        moves = client.act({"front": FRAMES[3]}, EPISODE.task, EPISODE.states[3])
        expected = here.act(Observation({"front": FRAMES[3]}, EPISODE.task, EPISODE.states[3])).actions
        assert moves == pytest.approx(expected, abs=1e-5)
        process.send_signal(ending)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out.startswith("1 requests of 1 clients in ")
    assert "a secret" not in said + out + err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_policy_that_does_not_fit_what_it_is_served_for_is_refused_unless_forced(program: Program, run: Path) -> None:
    (program.folder / "arena.yaml").write_text(
        "name: arena\nsuite: {kind: custom, target: 'toy_arena:ToyArena', tasks: [push]}\nmax_steps: 7\n"
        "cameras: {top: front}\nacting: {history: 1, horizon: 3}\n"
    )
    words = ("serve", run, "--port", "0", "--device", "cpu", "--evaluation", "arena.yaml")
    told = "history: the policy sees 2 moments, the evaluation asks for 1"
    refused = program.run(*words)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert told in refused.stderr
    process = program.start(*words, "--force")
    said, address = wait_for_address(process)
    assert f"forced    {told}" in said
    with PolicyClient(address) as client:
        assert client.metadata["forced"] == [told]
        assert client.metadata["image_sizes"] == {"front": [32, 32]}
        assert len(client.metadata["statistics"]) == 64
    process.terminate()
    process.communicate(timeout=30)


def test_force_is_for_an_evaluation() -> None:
    with pytest.raises(ServingError, match="--force: is for --evaluation"):
        command.serve("policy", force=True)


@pytest.mark.slow
def test_openpis_own_client_is_served(program: Program, run: Path) -> None:
    openpi = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    process = program.start("serve", run, "--port", "0", "--device", "cpu")
    _, address = wait_for_address(process)
    with pytest.warns(DeprecationWarning, match="context manager"):  # how it opens its connection
        client = openpi.WebsocketClientPolicy(address)
    request = {
        "observation/image": FRAMES[3],
        "observation/wrist_image": FRAMES[3],
        "observation/state": np.asarray(EPISODE.states[3]),
        "prompt": EPISODE.task,
    }
    expected = Policy.load(run, device="cpu").act(Observation({"front": FRAMES[3]}, EPISODE.task, EPISODE.states[3]))
    assert client.infer(request)["actions"] == pytest.approx(expected.actions, abs=1e-5)
    with pytest.raises(RuntimeError, match="lacks the image of front"):
        client.infer({"prompt": "push"})
    client._ws.close()


@pytest.mark.slow
def test_vla_evals_own_client_is_served(program: Program, run: Path) -> None:
    vla_eval = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")
    process = program.start("serve", run, "--port", "0", "--device", "cpu")
    _, address = wait_for_address(process)

    async def episode(path: str) -> list[np.ndarray]:
        async with vla_eval.Connection(address + path, max_retries=1) as connection:
            assert connection.server_info["observation_params"]["send_state"]
            await connection.start_episode({"task": {"name": "push"}})
            moves = []
            for step in range(4):
                images = {"agentview": FRAMES[step]}
                seen = {"images": images, "states": EPISODE.states[step].tolist(), "task_description": EPISODE.task}
                moves.append((await connection.act(seen))["actions"])
            await connection.end_episode({"success": True})
        return moves

    session = Session(Policy.load(run, device="cpu"))
    expected = [
        session.act(Observation({"front": FRAMES[step]}, EPISODE.task, EPISODE.states[step])) for step in range(4)
    ]
    for path in ("/vla-eval", ""):
        assert np.stack(asyncio.run(episode(path))) == pytest.approx(np.stack(expected), abs=1e-5)


@pytest.mark.slow
def test_vla_evals_own_harness_runs_a_benchmark_against_a_policy_and_its_results_are_compared(
    program: Program, run: Path
) -> None:
    pytest.importorskip("vla_eval", reason="vla-eval is not installed")
    process = program.start("serve", run, "--port", "0", "--device", "cpu", "--camera", "front=images/agentview")
    _, address = wait_for_address(process)
    config = {
        "server": {"url": f"{address}/vla-eval"},
        "output_dir": str(program.folder / "results"),
        "benchmarks": [{"benchmark": "vla_eval_arena:Arena", "episodes_per_task": 3, "max_steps": 7, "paced": False}],
    }
    (program.folder / "config.json").write_text(json.dumps(config))  # which is YAML, too
    done = subprocess.run(
        [Path(sys.executable).with_name("vla-eval"), "run", "--no-docker", "--yes", "--config", "config.json"],
        cwd=program.folder,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Auto-configured from model server: send_state=True" in done.stdout + done.stderr
    found = success_rate(read_episodes(program.folder / "results" / "Arena_aggregate.json"))
    assert (found.episodes, found.successes, found.errors) == (6, 4, 0)


@pytest.mark.slow
def test_a_port_in_use_is_one_line_with_exit_code_2(program: Program, run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = program.run("serve", run, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is in use on 127.0.0.1; choose another one" in done.stderr


def test_a_key_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " "):
        monkeypatch.setenv("POLICY_KEY", value)
        with pytest.raises(ServingError, match="--api-key-env POLICY_KEY: the variable is not set or empty"):
            command.serve("run", port=0, api_key_env="POLICY_KEY")


@pytest.mark.parametrize("word", ["front", "=images/top", "front="])
def test_a_camera_without_its_key_is_one_line(word: str) -> None:
    with pytest.raises(ServingError, match="expected NAME=VALUE"):
        command.serve("run", port=0, camera=[word])


def test_parameters_of_a_benchmark_keep_their_type() -> None:
    words = ["true", "7", "0.5", "word"]
    assert [command._value(word) for word in words] == [True, 7, 0.5, "word"]


def test_packages_that_are_missing_are_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for needs in (lambda: command.serve("run", port=0), lambda: PolicyClient("ws://127.0.0.1:1")):
        with pytest.raises(MissingPackageError, match=r"needs msgpack and websockets: pip install 'vlatrack\[serve\]'"):
            needs()

"""Several processes on one evaluation, policies behind servers, and full disks."""

import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from arena import Arena
from foreign_server import ForeignServer, foreign_server, to_the_right
from program import TOY, Program

import vlatrack
from vlatrack.errors import VlatrackError
from vlatrack.runner.closed_loop import Options, evaluate_in_simulator

pytestmark = pytest.mark.slow

SHORT = ("train.max_steps=2", "data.history=2", "evaluate.open_loop=null", "tracking.system_every_s=null")
RESIZED = "acting.images.resize={size: 24, method: pad}"
OUTCOMES = (["success", "success", "failure"] * 2) * 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run = vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=folder).path
    vlatrack.export(run, folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """What one process has found."""
    arena = Arena(tmp_path_factory.mktemp("alone"))
    evaluate_in_simulator(policy, arena.file, options=Options(output=arena.results))
    return arena


def without_videos(arena: Arena) -> list[dict[str, str]]:
    """Of failures some appear later, and then others go."""
    return [{**row, "video": ""} for row in arena.rows()]


def check_same(arena: Arena, alone: Arena) -> None:
    assert arena.rows() == alone.rows()
    assert [row["outcome"] for row in arena.rows()] == OUTCOMES
    assert arena.description()["summary"] == alone.description()["summary"]
    assert arena.left_over() == []


def test_torchrun_divides_the_episodes_and_one_process_tells(
    policy: Path, alone: Arena, program: Program, tmp_path: Path
) -> None:
    arena = Arena(tmp_path / "divided", pause_s=0.1)
    done = program.run_many(*arena.command(policy), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all episodes") == 1
    assert "8/12  66.7%" in done.stdout
    check_same(arena, alone)
    assert set(arena.begun().values()) == {1}
    assert len(arena.workers()) >= 2, "both have run some"


def test_an_error_of_all_processes_is_told_once(policy: Path, program: Program, tmp_path: Path) -> None:
    arena = Arena(tmp_path / "divided")
    done = program.run_many(*arena.command(policy, "suite.tasks=[pusch]"), processes=2)
    assert done.returncode != 0
    assert done.stderr.count("suite.tasks.0: arena has no task 'pusch'") == 1


def test_one_that_is_killed_is_replaced_by_the_others_and_by_one_that_comes_later(
    policy: Path, alone: Arena, program: Program, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    arena = Arena(tmp_path / "shared", pause_s=0.2)
    first = [program.start(*arena.command(policy, "--workers", "2")) for _ in range(2)]
    eventually(lambda: arena.count() >= 3)
    first[0].send_signal(signal.SIGKILL)
    first[0].wait()
    kept = without_videos(arena)
    late = program.start(*arena.command(policy))
    for process in (first[1], late):
        told, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert "8/12  66.7%" in told
    check_same(arena, alone)
    assert all(row in without_videos(arena) for row in kept)
    assert sum(arena.begun().values()) <= 12 + 2


def test_a_server_of_ours_gives_the_table_that_its_policy_gives_here(
    policy: Path, alone: Arena, program: Program, tmp_path: Path
) -> None:
    server = program.start("serve", policy, "--port", "0", "--device", "cpu", OMP_NUM_THREADS="1")
    address = next(line.split()[1] for line in server.stdout if line.startswith("serving "))
    arena = Arena(tmp_path / "served")
    done = program.run(*arena.command(address))
    assert done.returncode == 0, done.stderr
    assert arena.rows() == alone.rows()
    said, here = arena.description(), alone.description()
    assert said["policy_sha256"] == here["policy_sha256"]
    assert said["server"]["address"] == address
    evaluate_in_simulator(policy, arena.file, options=Options(output=arena.results))  # the same policy, as it says


def test_a_server_that_is_killed_and_comes_back_costs_no_episode(
    policy: Path, alone: Arena, program: Program, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    server = program.start("serve", policy, "--port", "0", "--device", "cpu")
    address = next(line.split()[1] for line in server.stdout if line.startswith("serving "))
    arena = Arena(tmp_path / "served", pause_s=0.1)
    evaluation = program.start(*arena.command(address, "--workers", "2"))
    eventually(lambda: arena.count() >= 3)
    server.kill()
    server.wait()
    port = address.rpartition(":")[2]
    again = program.start("serve", policy, "--port", port, "--device", "cpu")
    _, errors = evaluation.communicate(timeout=200)
    assert evaluation.returncode == 0, errors
    assert again.poll() is None
    check_same(arena, alone)
    assert 12 <= sum(arena.begun().values()) <= 12 + 2


def evaluated(server: ForeignServer, arena: Arena, *overrides: str, **options: object):
    chosen = Options(output=arena.results, **options)
    return evaluate_in_simulator(server.address, arena.file, overrides=overrides, options=chosen)


def test_a_server_of_others_is_evaluated(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "foreign")
    with foreign_server(to_the_right, {"name": "pi"}) as server:
        found = evaluated(server, arena, RESIZED, api_key="a secret")
        assert [row.outcome for row in found.rows] == OUTCOMES
        assert {row.reward for row in found.rows} == {"1.5", "3.5"}
        assert all(float(row.latency_p50_ms) > 0 for row in found.rows)
        assert server.requests[-1]["observation/image"].shape == (24, 24, 3)
        assert server.requests[-1]["prompt"] == "pull"
        assert len(server.requests) == 1 + 8 * 2 + 4 * 4, "the example, and a chunk of two steps each time"
        said = arena.description()
        assert (said["policy"], said["policy_sha256"]) == (server.address, None)
        assert said["server"]["address"] == server.address
        assert "secret" not in (arena.results / "evaluation.json").read_text()
        with pytest.raises(VlatrackError, match=r"acting.replan_every|replan_every: 3, but a chunk has 2 steps"):
            evaluated(server, arena, "acting.replan_every=3")
    with (
        foreign_server(to_the_right, {"name": "pi, trained longer"}) as server,
        pytest.raises(VlatrackError, match=r"holds another evaluation \(server.address: "),
    ):
        evaluated(server, arena, RESIZED)


def test_an_episode_that_a_server_never_answers_is_an_error_after_three_attempts(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "foreign", episodes=2)

    def answer(request):
        return "Traceback\nValueError: no push" if request["prompt"] == "push" and len(asked) else to_the_right(request)

    asked: list[int] = []
    with foreign_server(lambda request: answer(request)) as server:
        server.answer = lambda request: asked.append(1) or to_the_right(request) if not asked else answer(request)
        found = evaluated(server, arena)
    assert [row.outcome for row in found.rows] == ["error", "error", "success", "success"]
    assert {row.reason for row in found.rows[:2]} == {"the server refused: ValueError: no push"}
    assert list(arena.begun().values()) == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"actions": np.ones((2, 3))}, "action: the policy has 3 numbers, the simulator 2"),
        ({"action": np.ones((2, 2))}, "the answer has no array 'actions'"),
        ("KeyError: 'observation/wrist_image'", "the server refused: KeyError: 'observation/wrist_image'"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_written(answer, told: str, tmp_path: Path) -> None:
    arena = Arena(tmp_path / "foreign")
    with foreign_server(lambda _: answer) as server, pytest.raises(VlatrackError, match=re.escape(told)):
        evaluated(server, arena)
    assert not arena.results.exists()


def test_without_a_server_the_command_ends_with_one_line(program: Program, tmp_path: Path) -> None:
    arena = Arena(tmp_path / "gone")
    done = program.run(*arena.command("ws://127.0.0.1:1"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ws://127.0.0.1:1: no policy is served there (")
    assert done.stderr.count("\n") == 1
    assert program.run("evaluate", "--policy", "127.0.0.1:1", arena.file).stderr.startswith("error: --policy 127.0.0.1")
    done = program.run(*arena.command("ws://127.0.0.1:1"), "--api-key-env", "NO_SUCH_KEY")
    assert done.stderr == "error: --api-key-env NO_SUCH_KEY: the variable is not set or empty; export the key in it\n"


def test_results_of_a_server_have_a_folder_that_the_last_line_names(program: Program, tmp_path: Path) -> None:
    arena = Arena(tmp_path / "foreign")
    with foreign_server(to_the_right) as server:
        done = program.run("evaluate", server.address, arena.file, "--episodes", "1", "--videos", "0")
    assert done.returncode == 0, done.stderr
    folder = f"evaluations/arena-127.0.0.1-{server.address.rpartition(':')[2]}"
    assert done.stdout.splitlines()[-1] == f"written to {folder}"
    assert re.fullmatch(r"took 0:\d\d:\d\d, \d+\.\d% of it in the simulator", done.stdout.splitlines()[-2])
    assert (program.folder / folder / "episodes.csv").read_text().count("\n") == 1 + 2


FULL = """
import resource
from vlatrack.runner.episode_videos import EpisodeVideos
from vlatrack.runner.evaluation_folder import EvaluationFolder
from vlatrack.cli.main import main

def full(write, folder, found):
    if len((folder if isinstance(folder, EvaluationFolder) else folder._folder).rows) == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    return write(folder, found)

for place in (PLACE,):
    write = getattr(*place)
    setattr(*place, lambda folder, found: full(write, folder, found))
main()
"""
"""In the episode after the fourth row, no file can grow beyond so many bytes any more."""
ROW, VIDEO = 'EvaluationFolder, "append"', 'EpisodeVideos, "add"'


@pytest.mark.parametrize(("place", "size"), [(ROW, 250), (ROW, 0), (VIDEO, 0)], ids=["a row", "a byte", "a video"])
def test_a_full_disk_is_one_line_and_the_rows_before_it_are_kept(
    place: str, size: int, policy: Path, alone: Arena, program: Program, tmp_path: Path
) -> None:
    arena, script = Arena(tmp_path / "full"), tmp_path / "full.py"
    script.write_text(FULL.replace("LIMIT,", f"{size},").replace("PLACE,", f"({place}),"))
    process = program.start_script(script, *arena.command(policy))
    _, told = process.communicate(timeout=200)
    assert process.returncode == 2, told
    assert re.fullmatch(r"error: .*: cannot be written \(File too large\); free some disk space and repeat .*\n", told)
    assert not [child for child in psutil.Process().children() if "vlatrack.envs.worker" in child.cmdline()]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    kept = without_videos(arena)
    assert len(kept) == 4
    assert program.run(*arena.command(policy, "--videos", "0")).returncode == 0
    assert without_videos(arena) == without_videos(alone)
    assert kept == without_videos(arena)[:4]
    assert sum(arena.begun().values()) == 12 + 1

"""Storms over evaluations in a simulator: who runs them is killed at random moments, and each episode counts once."""

import contextlib
import functools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from arena import Arena
from mlflow_server import wait_until
from oracle import Outcome
from program import TOY, Program

EPISODES = 5
"""Of each of two tasks, for each kill."""
PAUSE_S = 0.04
"""Of each env step: an evaluation takes some seconds, and most kills meet it while episodes are going on."""
LONGEST_S = 300.0
PREPARE = """
import sys, vlatrack
short = ("train.max_steps=2", "data.history=2", "evaluate.open_loop=null", "tracking.system_every_s=null")
run = vlatrack.train(vlatrack.load_spec(sys.argv[1], short), runs=sys.argv[2] + "/runs").path
vlatrack.export(run, sys.argv[2] + "/policy")
"""


class Siege:
    """One evaluation that is struck."""

    def __init__(self, program: Program, arena: Arena, policy: Path, rng: random.Random, kills: int) -> None:
        self.arena, self.policy, self.rng, self.kills = arena, policy, rng, kills
        self.killed = 0
        self.may_begin_again = 0
        """Episodes that were going on in what was killed."""
        self._program = program
        self._server: subprocess.Popen[str] | None = None
        self._port = 0

    def start(self, *others: str, subject: Path | str | None = None) -> "subprocess.Popen[str]":
        """Evaluate in a process."""
        return self._program.start(*self.arena.command(subject or self.policy, *others), OMP_NUM_THREADS="1")

    def pause(self, evaluation: "subprocess.Popen[str]", *, anywhere: bool = False) -> bool:
        """Until a random moment while episodes end, or `anywhere`, also before the first; false: the evaluation has."""
        if not (anywhere and self.rng.random() < 0.3):
            before = self.arena.count()
            wait_until(lambda: self.arena.count() > before + 2 or evaluation.poll() is not None, "episodes", LONGEST_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            evaluation.wait(self.rng.uniform(0, 1.5))
        return evaluation.poll() is None

    def kill(self, process: "psutil.Process | subprocess.Popen[str]", episodes: int) -> None:
        """With so many of its episodes going on at most."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            self.killed += 1
            self.may_begin_again += episodes
        process.wait()

    def serve(self) -> str:
        """Start the server, at the port that it had; its address."""
        words = ("serve", self.policy, "--port", str(self._port), "--device", "cpu")
        self._server = self._program.start(*words, OMP_NUM_THREADS="1")
        assert self._server.stdout is not None
        address = next(line.split()[1] for line in self._server.stdout if line.startswith("serving "))
        self._port = int(address.rpartition(":")[2])
        return address

    def kill_server(self, episodes: int) -> None:
        """And start it again."""
        assert self._server is not None, "serve first"
        self.kill(self._server, episodes)
        self.serve()

    def end(self, evaluation: "subprocess.Popen[str]") -> int:
        """Wait for an evaluation; whether it ended otherwise than well."""
        _, errors = evaluation.communicate(timeout=LONGEST_S)
        if evaluation.returncode:
            print(errors, flush=True)
        return evaluation.returncode != 0


Strike = Callable[[Siege], int]
"""Evaluates, kills, and gives the number of processes that have not ended as they ought to."""


def workers_killed(siege: Siege) -> int:
    """Of three simulators one at a time; not in the third attempt at an episode, which would rightly be an error."""
    evaluation = siege.start("--workers", "3")
    while siege.killed < siege.kills and siege.pause(evaluation):
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(evaluation.pid).children()
            if may := [worker for worker in workers if siege.arena.attempts(worker.pid) in (1, 2)]:
                siege.kill(siege.rng.choice(may), 1)
    return siege.end(evaluation)


def evaluator_killed(siege: Siege) -> int:
    """One after another; the last one comes to its end."""
    evaluation = siege.start("--workers", "2")
    while siege.killed < siege.kills and siege.pause(evaluation, anywhere=True):
        siege.kill(evaluation, 2)
        evaluation = siege.start("--workers", "2")
    return siege.end(evaluation)


def one_of_several_killed(siege: Siege) -> int:
    """Two share the folder; one is killed, and replaced by a third."""
    both = [siege.start() for _ in range(2)]
    while siege.killed < siege.kills and siege.pause(both[0]):
        siege.kill(both.pop(siege.rng.randrange(2)), 1)
        both.append(siege.start())
    return sum(map(siege.end, both))


def all_of_several_killed(siege: Siege) -> int:
    """Two share the folder, and both are killed; then two others do."""
    both = [siege.start() for _ in range(2)]
    while siege.killed < siege.kills and siege.pause(both[0], anywhere=True):
        for evaluation in both:
            siege.kill(evaluation, 1)
        both = [siege.start() for _ in range(2)]
    return sum(map(siege.end, both))


def server_killed(siege: Siege) -> int:
    """And started again each time, at the same port."""
    evaluation = siege.start("--workers", "2", subject=siege.serve())
    while siege.killed < siege.kills and siege.pause(evaluation):
        siege.kill_server(2)
    return siege.end(evaluation)


@dataclass(frozen=True)
class EvaluationScene:
    """A kind of storm."""

    name: str
    strike: Strike

    def rage(self, folder: Path, seed: int, *, kills: int) -> Outcome:
        """One storm, and what was lost, doubled or miscounted; `folder` is shared by storms."""
        policy, expected = _prepared(folder, EPISODES * kills)
        rng = random.Random(f"{self.name} {seed}")
        here = folder / f"{self.name.replace(' ', '-')}-{seed}"
        arena = Arena(here, episodes=EPISODES * kills, pause_s=PAUSE_S)
        with _program(here) as program:
            siege = Siege(program, arena, policy, rng, kills)
            wrong_ends = self.strike(siege)
            wait_until(lambda: not _simulators(arena), "the end of the workers", 30)
            print(f"  {self.name}, seed {seed}: {siege.killed} kills", flush=True)
        return _judge(siege, expected, wrong_ends)


@contextlib.contextmanager
def _program(folder: Path) -> Iterator[Program]:
    program = Program(folder)
    try:
        yield program
    finally:
        program.close()


@functools.cache
def _prepared(folder: Path, episodes: int) -> tuple[Path, Arena]:
    """A policy, and an evaluation of it that nothing strikes."""
    with _program(folder) as program:
        subprocess.run([sys.executable, "-c", PREPARE, str(TOY), str(folder)], check=True, env=program.environment)
        arena = Arena(folder / "undisturbed", episodes=episodes)
        done = program.run(*arena.command(folder / "policy"))
        assert done.returncode == 0, done.stderr
    return folder / "policy", arena


def _judge(siege: Siege, expected: Arena, wrong_ends: int) -> Outcome:
    arena = siege.arena
    rows, wanted = arena.rows(), expected.rows()
    episodes = [(row["task"], row["seed"]) for row in rows]
    right = [row for row in rows if row in wanted]
    begun = arena.begun()
    too_often = max(0, sum(begun.values()) - len(wanted) - siege.may_begin_again)
    counted = arena.description()["summary"] == expected.description()["summary"]
    return Outcome(
        rows=len(rows),
        lost=len(wanted) - len({(row["task"], row["seed"]) for row in right}),
        duplicated=len(episodes) - len(set(episodes)) + too_often,
        files_lost=len(arena.left_over()) + sum(not (arena.results / row["video"]).exists() for row in rows),
        wrong_ends=wrong_ends + (not counted),
    )


def _simulators(arena: Arena) -> list[int]:
    return [int(pid) for pid in arena.workers() if psutil.pid_exists(int(pid)) and _is_worker(int(pid))]


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "vlatrack.envs.worker" in psutil.Process(pid).cmdline()
    return False


EVALUATIONS = (
    EvaluationScene("simulators kill -9", workers_killed),
    EvaluationScene("evaluator kill -9", evaluator_killed),
    EvaluationScene("one of several evaluators kill -9", one_of_several_killed),
    EvaluationScene("all of several evaluators kill -9", all_of_several_killed),
    EvaluationScene("policy server kill -9", server_killed),
)

"""What a worker does with a simulator, and what becomes of workers that break or lose the one that asks them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from launching import running
from toy_arena import STEPS_TO_SUCCESS, ToyArena

from vlatrack.envs.watched import Simulator, WatchedWorker, opened, wait_for_answers
from vlatrack.envs.worker import Act, Begin, Failed, Opened, Refused, Stretch, execute
from vlatrack.errors import DataError
from vlatrack.testing.environment_contract import EnvironmentContract

ARENA = "toy_arena:ToyArena"
BEGIN = Begin("push", seed=1, waits=0, no_op=None)


class TestToyArena(EnvironmentContract):
    def make(self) -> ToyArena:
        return ToyArena()


def test_only_what_the_policy_will_see_is_rendered() -> None:
    arena = ToyArena()
    first = execute(arena, Begin("push", seed=2, waits=3, no_op=None))
    assert arena.rendered == 2, "after the reset, and after the last of the waits"
    assert len(first.observations) == 1
    stretch = execute(arena, Act(np.zeros((6, 2), np.float32), seen=2))
    assert arena.rendered == 4
    assert [set(seen.images) for seen in stretch.observations] == [{"top"}, {"top"}]
    assert (stretch.steps, stretch.success) == (6, False)


def test_actions_are_clipped_and_end_with_the_episode() -> None:
    arena = ToyArena()
    execute(arena, BEGIN)
    stretch = execute(arena, Act(np.full((10, 2), 7.0, np.float32), seen=1))
    assert (stretch.steps, stretch.success, stretch.reward) == (STEPS_TO_SUCCESS, True, STEPS_TO_SUCCESS)


def test_the_action_of_the_waits_is_that_of_the_evaluation() -> None:
    arena = ToyArena()
    still = execute(arena, BEGIN).observations[0].state
    moved = execute(arena, Begin("push", seed=1, waits=2, no_op=(0.5, -0.5))).observations[0].state
    assert moved - still == pytest.approx([0.1, -0.1])
    with pytest.raises(DataError, match="no_op: 3 numbers, but an action of push has 2"):
        execute(arena, Begin("push", seed=1, waits=2, no_op=(0, 0, 0)))


def test_the_expert_acts_inside_the_simulator() -> None:
    arena = ToyArena()
    execute(arena, BEGIN)
    assert execute(arena, Act(20, seen=1)).reward == STEPS_TO_SUCCESS


def test_a_worker_answers_what_the_simulator_does_and_ends_when_it_is_closed() -> None:
    worker = WatchedWorker(Simulator(ARENA, {}, timeout_s=60))
    try:
        there = opened(worker)
        assert (there.tasks, there.has_expert, there.info) == (ToyArena.tasks, True, ToyArena.info)
        worker.ask(BEGIN)
        (begun,) = wait_for_answers([worker])
        answer = begun.answer()
        assert isinstance(answer, Stretch)
        assert np.array_equal(answer.observations[0].images["top"], ToyArena().reset("push", seed=1).images["top"])
    finally:
        worker.close()
    assert not psutil.pid_exists(worker.pid)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trouble": "crash", "seeds": "1"}, "the worker ended: signal SIGSEGV"),
        pytest.param({"trouble": "hang", "seeds": "1"}, "no answer in 1 s", marks=pytest.mark.slow),
        pytest.param({"trouble": "stop", "seeds": "1"}, "no answer in 1 s", marks=pytest.mark.slow),
        ({"trouble": "raise", "seeds": "1"}, "RuntimeError: the point fell off the table"),
    ],
)
def test_a_worker_that_breaks_is_told_and_gone(options: dict[str, object], told: str, tmp_path: Path) -> None:
    worker = WatchedWorker(Simulator(ARENA, options, timeout_s=60, log=tmp_path / "log"))
    assert isinstance(worker.answer(), Opened)
    worker.ask(BEGIN)
    worker.answer()
    worker.simulator = Simulator(ARENA, options, timeout_s=1)
    worker.ask(Act(np.zeros((3, 2), np.float32), seen=1))
    assert worker in wait_for_answers([worker])
    answer = worker.answer()
    assert isinstance(answer, Failed)
    assert answer.text == told
    assert ("Traceback" in (tmp_path / "log").read_text()) == ("Error" in told)
    worker.kill()
    assert not psutil.pid_exists(worker.pid)


def test_a_mistake_of_the_user_is_told_as_such() -> None:
    worker = WatchedWorker(Simulator("toy_arena:ToyArean", {}, timeout_s=60))
    answer = worker.answer()
    worker.kill()
    assert isinstance(answer, Refused)
    assert (answer.kind, "cannot be loaded" in answer.text) == ("SpecError", True)


PARENT = """
import signal, sys
from vlatrack.envs.watched import Simulator, WatchedWorker
from vlatrack.envs.worker import Act, Begin

worker = WatchedWorker(Simulator("toy_arena:ToyArena", {"trouble": "hang", "seeds": "1"}, timeout_s=60))
worker.answer()
worker.ask(Begin("push", seed=1, waits=2, no_op=None))
print(worker.pid, flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_a_worker_that_hangs_ends_when_the_one_that_asks_is_killed(eventually: Callable[..., None]) -> None:
    path = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": path}
    with running([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)

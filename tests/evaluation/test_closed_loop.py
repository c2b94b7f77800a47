"""Episodes on parallel simulators: each ends once, with its own identity, whatever becomes of the workers."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy_arena import STEPS_TO_SUCCESS

from vlatrack.envs.watched import Simulator
from vlatrack.envs.worker import Begin
from vlatrack.errors import SpecError
from vlatrack.evaluation import closed_loop
from vlatrack.evaluation.actors import Decision, Turn, Undecided
from vlatrack.evaluation.closed_loop import ATTEMPTS, ClosedLoop, EpisodeResult, PlannedEpisode
from vlatrack.evaluation.episodes import EpisodeId


class Drifter:
    """Goes to the right, two steps a decision."""

    seen = 1

    def __init__(self) -> None:
        self.at_once: list[int] = []

    def session(self) -> None:
        """Remembers nothing."""

    def decide(self, turns: Sequence[Turn]) -> list[Decision | Undecided]:
        self.at_once.append(len(turns))
        return [self._decide(turn) for turn in turns]

    def _decide(self, turn: Turn) -> Decision | Undecided:
        if not np.isfinite(turn.observations[-1].state).all():
            return Undecided("the state is not finite")
        return Decision(np.tile(np.float32([0.5, 0]), (2, 1)), 0.001)


def episodes(count: int) -> list[PlannedEpisode]:
    return [
        PlannedEpisode(seed, EpisodeId("push", str(seed), str(seed)), Begin("push", seed, 0, None))
        for seed in range(count)
    ]


def run(notes: Path, count: int = 5, workers: int = 2, timeout_s: float = 60, **options: object) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    notes.mkdir(exist_ok=True)
    arena = Simulator("toy_arena:ToyArena", {"notes": str(notes), **options}, timeout_s, notes.parent / "log")
    loop = ClosedLoop(arena, Drifter(), max_steps=9, camera="top", workers=workers)
    loop.run(episodes(count), results.append)
    assert not [child for child in psutil.Process().children() if "vlatrack.envs.worker" in " ".join(child.cmdline())]
    return sorted(results, key=lambda result: result.episode.number)


def begun(notes: Path) -> dict[int, list[str]]:
    """The workers in which each episode began."""
    return {int(file.name.partition("-")[2]): file.read_text().split() for file in notes.iterdir()}


def test_each_episode_ends_once_with_success_or_failure(tmp_path: Path) -> None:
    results = run(tmp_path / "notes")
    assert [result.outcome for result in results] == ["success", "success", "failure", "success", "success"]
    assert [result.steps for result in results] == [STEPS_TO_SUCCESS] * 2 + [9] + [STEPS_TO_SUCCESS] * 2
    assert [result.reward for result in results] == [2, 2, 4.5, 2, 2]
    assert [len(result.latencies) for result in results] == [2, 2, 5, 2, 2]
    assert all(len(result.frames) == len(result.latencies) for result in results)
    workers = begun(tmp_path / "notes")
    assert {len(pids) for pids in workers.values()} == {1}
    assert len({pid for pids in workers.values() for pid in pids}) == 2


def test_the_time_that_a_policy_takes_is_not_the_simulators() -> None:
    class SlowDrifter(Drifter):
        def decide(self, turns: Sequence[Turn]) -> list[Decision | Undecided]:
            time.sleep(0.1)
            return super().decide(turns)

    drifter = SlowDrifter()
    loop = ClosedLoop(Simulator("toy_arena:ToyArena", {}, 60), drifter, max_steps=9, camera=None)
    loop.run(episodes(2), lambda result: None)
    assert loop.spent.simulating > 0
    assert loop.spent.total - loop.spent.simulating >= 0.1 * len(drifter.at_once)


@pytest.mark.parametrize(
    "trouble", ["crash", *(pytest.param(other, marks=pytest.mark.slow) for other in ("raise", "hang", "nan"))]
)
def test_an_episode_whose_worker_breaks_is_begun_again_and_an_error_in_the_end(trouble: str, tmp_path: Path) -> None:
    timeout_s = 3 if trouble == "hang" else 60
    recovered = run(tmp_path / "once", workers=1, timeout_s=timeout_s, count=2, trouble=trouble, seeds="1", times=1)
    assert [(result.outcome, result.steps, result.reward) for result in recovered] == [("success", 4, 2)] * 2
    assert len(set(begun(tmp_path / "once")[1])) == 2, "again, in a new worker"
    if trouble != "crash":
        return
    lost = run(tmp_path / "always", workers=1, count=3, trouble=trouble, seeds="1")
    assert [result.outcome for result in lost] == ["success", "error", "failure"]
    assert lost[1].reason == "the worker ended: signal SIGSEGV"
    assert lost[1].episode.id == EpisodeId("push", "1", "1")
    assert [len(set(pids)) for _, pids in sorted(begun(tmp_path / "always").items())] == [1, ATTEMPTS, 1]


@pytest.mark.slow
def test_workers_are_replaced_after_some_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "EPISODES_PER_WORKER", 2)
    run(tmp_path / "notes", count=4, workers=1)
    pids = [pids[0] for _, pids in sorted(begun(tmp_path / "notes").items())]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_mistake_that_every_worker_would_find_ends_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="options: got an unexpected keyword argument 'colour'"):
        run(tmp_path / "notes", colour="red")

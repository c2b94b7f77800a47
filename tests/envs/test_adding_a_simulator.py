"""CONTRIBUTING.md, "Adding a simulator", carried out on the simulator that it shows."""

import pytest
from program import TOY, Program
from recipes import code_of, module_of

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.envs.base import Environment
from vlatrack.testing.environment_contract import EnvironmentContract
from vlatrack.tracking.journal.history import metric_history

ARENA = module_of("arena.py")


class TestArena(EnvironmentContract):
    longest = 40

    def make(self) -> Environment:
        return ARENA.Arena()


@pytest.mark.slow
def test_a_simulator_of_ones_own_is_recorded_and_trained_on_by_the_command_line(program: Program) -> None:
    (program.folder / "arena.py").write_text(code_of("arena.py"))
    words = ["red", "blue:2", "--episodes", "3", "--env", "arena:Arena", "--env-option", "stride=0.1", "-o", "demos"]
    recorded = program.run("data", "record", *words)
    assert recorded.returncode == 0, recorded.stderr
    assert "wrote demos: 5 episodes" in recorded.stdout.splitlines()[-1]
    dataset = LeRobotDataset(program.folder / "demos")
    tasks = [episode.task for episode in dataset.episodes()]
    assert tasks == ["go to the red square"] * 3 + ["go to the blue square"] * 2
    assert (dataset.action_dim, dataset.state_dim, dataset.fps) == (2, 2, 10.0)
    frames = dataset.frames(dataset.episodes()[0], "observation.images.top")
    assert frames.shape[1:] == (32, 32, 3)
    assert frames.max() > 180

    source = "kind: lerobot, path: demos, part:"
    splits = [
        f"data.train={{{source} all_but_last_tenth}}",
        f"data.val_ind={{{source} last_tenth}}",
        "data.val_ood=null",
    ]
    changes = ["data.cameras=[observation.images.top]", "train.max_steps=2", "tracking.log_every=1"]
    trained = program.run("run", TOY, *splits, *changes)
    assert trained.returncode == 0, trained.stderr
    assert len(metric_history(program.only_run() / "journal.jsonl")["train_closs"]) == 2


def test_a_mistake_about_the_simulator_is_one_line(program: Program) -> None:
    silent = "\n\nclass Silent(Arena):\n    expert_action = None\n"
    (program.folder / "arena.py").write_text(code_of("arena.py") + silent)
    for options, told in (
        (["--env", "arena:Arean"], "arena:Arean: cannot be loaded (AttributeError: module 'arena' has no attribute"),
        (["--env", "arena:Arena", "--env-option", "size=3"], "arena:Arena: options: got an unexpected keyword"),
        (["--env", "arena:Silent"], "arena:Silent: has no scripted expert"),
        (["--env", "arena"], "arena: no installed package offers it (entry points of vlatrack.environments: none)"),
    ):
        done = program.run("data", "record", "red", *options, "-o", "demos")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert told in done.stderr
    assert not (program.folder / "demos").exists()

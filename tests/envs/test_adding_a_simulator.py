"""The simulator of docs/write-an-environment.md; test_extension_pages.py records, trains and evaluates in it."""

from program import Program
from recipes import files_of, module_of

from vlatrack.envs.base import Environment
from vlatrack.testing.environment_contract import EnvironmentContract

PAGE = "write-an-environment.md"
ARENA = module_of(PAGE, "arena.py")


class TestArena(EnvironmentContract):
    longest = 40

    def make(self) -> Environment:
        return ARENA.Arena()


def test_a_mistake_about_the_simulator_is_one_line(program: Program) -> None:
    silent = "\n\nclass Silent(Arena):\n    expert_action = None\n"
    (program.folder / "arena.py").write_text(files_of(PAGE)["arena.py"] + silent)
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

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


def test_a_simulator_without_an_expert_is_refused_in_one_line_and_leaves_no_folder(program: Program) -> None:
    silent = "\n\nclass Silent(Arena):\n    expert_action = None\n"
    (program.folder / "arena.py").write_text(files_of(PAGE)["arena.py"] + silent)
    done = program.run("data", "record", "red", "--env", "arena:Silent", "-o", "demos")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "arena:Silent: has no scripted expert" in done.stderr
    assert not (program.folder / "demos").exists()

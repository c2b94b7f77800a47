"""Third-party classes by their path or by an entry point, and what can be wrong with them."""

from pathlib import Path

import pytest

from vlatrack.errors import DataError, SpecError
from vlatrack.plugins import make_plugin

GROUP = "vlatrack.examples"
MODULE = """
from vlatrack.errors import DataError

NUMBER = 3

class Robot:
    def __init__(self, *, arms=2):
        if arms > 2:
            raise DataError("robot: too many arms; remove some")
        self.arms = arms

def build(arms):
    return Robot(arms=arms)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point, as pip leaves it."""
    (tmp_path / "their_robot.py").write_text(MODULE)
    (tmp_path / "their_broken.py").write_text("raise RuntimeError('two\\nlines')")
    info = tmp_path / "their_robot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-robot\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nrobot = their_robot:Robot\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("target", ["their_robot:Robot", "their_robot:build", "robot"])
def test_a_class_is_called_with_its_options(target: str) -> None:
    made = make_plugin(target, group=GROUP, options={"arms": 1})
    assert type(made).__name__ == "Robot"
    assert vars(made) == {"arms": 1}


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("their_robot:Rob", {}, "cannot be loaded (AttributeError: module 'their_robot' has no attribute 'Rob')"),
        ("their_robots:Robot", {}, "cannot be loaded (ModuleNotFoundError: No module named 'their_robots')"),
        ("their_broken:Robot", {}, "their_broken:Robot: cannot be loaded (RuntimeError: two lines)"),
        ("their_robot:NUMBER", {}, "their_robot:NUMBER: is not a class"),
        ("their_robot:Robot", {"legs": 2}, "options: got an unexpected keyword argument 'legs'; correct the options"),
        ("their_robot:build", {}, "options: missing a required argument: 'arms'"),
        ("robo", {}, "no installed package offers it (entry points of vlatrack.examples: robot)"),
    ],
)
def test_what_cannot_be_made_is_one_line(target: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError) as error:
        make_plugin(target, group=GROUP, options=options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_compiled_code_that_does_not_tell_its_arguments_is_called() -> None:
    assert make_plugin("collections:OrderedDict", group=GROUP, options={"arms": 1}) == {"arms": 1}


def test_an_error_of_the_class_itself_passes() -> None:
    with pytest.raises(DataError, match="too many arms"):
        make_plugin("robot", group=GROUP, options={"arms": 3})

"""Recorded images beside those that a simulator renders itself."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vlatrack.envs.upright import turn_of_rotation, upright_images
from vlatrack.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("simulator", "camera", "told"),
    [
        ("isaac", "front", "'isaac': no simulator that can be asked; give metaworld, libero_spatial"),
        ("metaworld", "observation.images.front", "metaworld has none of the cameras observation.images.front"),
        ("libero_goal", "corner4", "libero_goal has none of the cameras corner4"),
    ],
)
def test_what_cannot_be_rendered_is_told(simulator: str, camera: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        next(upright_images(simulator, ["open the window"], [camera]))


def test_liberos_own_images_are_upside_down() -> None:
    assert [turn_of_rotation("libero_goal", rotation) for rotation in (0, 180)] == ["upside down", "mirrored"]
    assert [turn_of_rotation("metaworld", rotation) for rotation in (0, 180)] == ["upright", "turned by 180 degrees"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs pip install 'vlatrack[metaworld]'")
@pytest.mark.parametrize(("rotation", "code"), [(0, 0), (180, 1)])
def test_a_rotation_that_is_not_that_of_the_images_is_found(rotation: int, code: int) -> None:
    """In a process of its own: MuJoCo's choice of OpenGL is made once in a process."""
    command = ["data", "validate", "experiments/quickstart.yaml", f"data.recorded.rotation={rotation}"]
    done = subprocess.run(
        [sys.executable, "-m", "vlatrack", *command, "--render", "metaworld"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    told = "images are upright, by data.recorded.rotation they are turned by 180 degrees"
    assert done.stdout.count(told) == (2 if code else 0)

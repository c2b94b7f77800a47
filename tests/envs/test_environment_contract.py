"""The contract of a simulator, run against the one that ships."""

from importlib.util import find_spec

import pytest

from vlatrack.envs.base import Environment
from vlatrack.envs.metaworld import MetaWorld
from vlatrack.testing.environment_contract import EnvironmentContract


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs pip install 'vlatrack[metaworld]'")
class TestMetaWorld(EnvironmentContract):
    """Without images: MuJoCo's choice of OpenGL is made once in a process, and `test_record.py` has one for it."""

    def make(self) -> Environment:
        return MetaWorld(cameras=())

    def tried_tasks(self, environment: Environment) -> tuple[str, ...]:
        return ("coffee-button-v3", "handle-press-v3")

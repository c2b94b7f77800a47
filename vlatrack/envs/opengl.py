"""Finds an OpenGL backend that renders off-screen, before MuJoCo is imported and chooses one itself."""

import os
import subprocess
import sys
from importlib.util import find_spec

from vlatrack.errors import MissingPackageError

VARIABLE = "MUJOCO_GL"
OFFSCREEN_BACKENDS = ("egl", "osmesa")
PROBE_TIMEOUT_S = 60
_PROBE = """
import mujoco
with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
    renderer.render()
"""


def choose_opengl(*, extra: str) -> None:
    """Set MUJOCO_GL to the first of egl and osmesa that works; a value set by the user is only checked.

    MuJoCo reads the variable when it is imported, so this is called before that. Each candidate is
    tried in a process of its own, since a failed attempt would break this one. On systems other than
    Linux, MuJoCo's default works off-screen, and nothing is done.

    Args:
        extra: of vlatrack, with the simulator.

    Raises:
        MissingPackageError: MuJoCo is not installed, or no OpenGL works; the message says what to install.
    """
    if find_spec("mujoco") is None:
        raise MissingPackageError(f"a simulator needs the package mujoco: pip install 'vlatrack[{extra}]'")
    if sys.platform != "linux":
        return
    chosen = os.environ.get(VARIABLE)
    for backend in (chosen,) if chosen else OFFSCREEN_BACKENDS:
        if _can_draw(backend):
            os.environ[VARIABLE] = backend
            return
    tried = f"{VARIABLE}={chosen}" if chosen else f"{VARIABLE}=egl and {VARIABLE}=osmesa"
    raise MissingPackageError(
        f"no off-screen OpenGL: tried {tried}; install one: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri "
        f"(egl) or libosmesa6 (osmesa){', or unset ' + VARIABLE if chosen else ''}"
    )


def _can_draw(backend: str) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=os.environ | {VARIABLE: backend},
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0

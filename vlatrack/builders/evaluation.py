"""From the spec of an evaluation to its episodes, and to how the policy sees and acts in them."""

from collections.abc import Iterator
from dataclasses import replace

from vlatrack.envs.worker import Begin
from vlatrack.evaluation.actors import View
from vlatrack.evaluation.closed_loop import PlannedEpisode
from vlatrack.evaluation.conventions import ImageSteps
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.fit import Conditions
from vlatrack.inference.session import Execution
from vlatrack.serving.cameras import libero_images
from vlatrack.serving.remote import RequestKeys
from vlatrack.spec.evaluation import CustomSuite, EvaluationSpec, LiberoSuite


def plan_episodes(spec: EvaluationSpec) -> Iterator[PlannedEpisode]:
    """The episodes of the set, task by task."""
    stored = isinstance(spec.suite, LiberoSuite) and spec.suite.initial_states == "stored"
    number = 0
    for task in spec.suite.tasks:
        for state in range(spec.episodes):
            seed = spec.first_seed if stored else spec.first_seed + state
            begin = Begin(task, seed, spec.waits, spec.no_op, initial_state=state if stored else None)
            yield PlannedEpisode(number, EpisodeId(task, str(state), str(seed)), begin)
            number += 1


def build_execution(spec: EvaluationSpec) -> Execution:
    """How chunks become actions."""
    return Execution(replan_every=spec.acting.replan_every, ensemble=spec.acting.ensemble)


def build_view(spec: EvaluationSpec) -> View:
    """How the policy sees the simulator."""
    images = spec.acting.images
    steps = ImageSteps(jpeg=images.jpeg, crop_area=images.crop_area)
    if images.resize is not None:
        steps = replace(steps, size=images.resize.size, method=images.resize.method)
    return View(spec.cameras, rotated=spec.rotation == 180, blind=spec.acting.blind, images=steps)


def build_conditions(spec: EvaluationSpec) -> Conditions:
    """What a policy would meet, to be compared with what it was trained on."""
    acting = spec.acting
    return Conditions(
        build_view(spec),
        resolution=None if isinstance(spec.suite, CustomSuite) else spec.resolution,
        prompt=spec.prompt,
        gripper=acting.gripper,
        waits=spec.waits,
        history=acting.history,
        horizon=acting.horizon,
        statistics=acting.statistics,
    )


def build_request(spec: EvaluationSpec) -> RequestKeys:
    """How the server of somebody else is asked.

    Raises:
        SpecError: it is not clear which camera is which.
    """
    request = spec.acting.request
    images = request.images or libero_images(list(spec.cameras.values()))
    return RequestKeys(images, request.state, request.prompt, request.actions)

"""From the spec of an evaluation to its episodes, and to how the policy sees and acts in them."""

from collections.abc import Iterator

from vlatrack.envs.worker import Begin
from vlatrack.evaluation.actors import View
from vlatrack.evaluation.closed_loop import PlannedEpisode
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.inference.session import Execution
from vlatrack.serving.cameras import libero_images
from vlatrack.serving.remote import RequestKeys
from vlatrack.spec.evaluation import EvaluationSpec, LiberoSuite


def plan_episodes(spec: EvaluationSpec) -> Iterator[PlannedEpisode]:
    """The episodes of the set, task by task."""
    stored_states = isinstance(spec.suite, LiberoSuite)
    number = 0
    for task in map(str, spec.suite.tasks):
        for state in range(spec.episodes):
            seed = spec.first_seed if stored_states else spec.first_seed + state
            begin = Begin(task, seed, spec.waits, spec.no_op)
            yield PlannedEpisode(number, EpisodeId(task, str(state), str(seed)), begin)
            number += 1


def build_execution(spec: EvaluationSpec) -> Execution:
    """How chunks become actions."""
    return Execution(replan_every=spec.acting.replan_every, ensemble=spec.acting.ensemble)


def build_view(spec: EvaluationSpec) -> View:
    """How the policy sees the simulator."""
    return View(spec.cameras, rotated=spec.rotation == 180, blind=spec.acting.blind)


def build_request(spec: EvaluationSpec) -> RequestKeys:
    """How the server of somebody else is asked.

    Raises:
        SpecError: it is not clear which camera is which.
    """
    request = spec.acting.request
    images = request.images or libero_images(list(spec.cameras.values()))
    return RequestKeys(images, request.state, request.prompt, request.actions, request.size)

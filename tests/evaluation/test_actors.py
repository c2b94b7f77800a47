"""How a policy sees a simulator."""

from dataclasses import replace

import numpy as np
import pytest

from vlatrack.envs.base import Observation as Seen
from vlatrack.evaluation.actors import Decision, PolicyActor, Turn, View, fitted
from vlatrack.inference.observation import Interface
from vlatrack.inference.policy import ActingPolicy, ActionChunk, Moment
from vlatrack.inference.session import Execution

POLICY = Interface(cameras=("front",), state_dim=2, history=1, horizon=3, action_dim=2)
SEEN = Seen({"top": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}, np.float32([1, 2]), "push")
VIEW = View({"top": "front"}, rotated=False, blind=False)


def test_a_policy_sees_cameras_by_the_names_of_its_training_turned_or_black() -> None:
    image = SEEN.images["top"]
    seen = VIEW.of(SEEN, POLICY)
    assert (list(seen.images), seen.instruction, list(seen.state)) == (["front"], "push", [1, 2])
    assert np.array_equal(seen.images["front"], image)
    turned = replace(VIEW, rotated=True).of(SEEN, POLICY).images["front"]
    assert np.array_equal(turned[0, 0], image[1, 1])
    small = replace(VIEW, rotated=True, images=lambda image: image[:1, :1]).of(SEEN, POLICY).images["front"]
    assert np.array_equal(small, image[1:, 1:]), "what is done to an image is done after it was turned"
    assert not replace(VIEW, blind=True).of(SEEN, POLICY).images["front"].any()
    assert image.any()
    assert VIEW.of(SEEN, replace(POLICY, state_dim=None)).state is None


class Closing(ActingPolicy):
    """Always moves by 0.5, and closes a little more than not at all."""

    def __init__(self) -> None:
        self.interface = POLICY

    def see(self, observation):
        return Moment(observation, {})

    def act_on(self, rows, *, route="head"):
        return [ActionChunk(np.full((3, 2), [0.5, 0.2]), 0.001) for _ in rows]


def test_the_gripper_is_converted_between_policy_and_simulator() -> None:
    for convention, last in (("raw", 0.2), ("sign", 1.0), ("openvla", 1.0)):
        actor = PolicyActor(
            Closing(), VIEW, action_dim=2, route="head", execution=Execution(), together=True, gripper=convention
        )
        (decision,) = actor.decide([Turn(actor.session(), [SEEN])])
        assert isinstance(decision, Decision)
        assert decision.actions == pytest.approx(np.full((3, 2), [0.5, last]))
        assert decision.actions.dtype == np.float32


def test_what_is_forced_to_fit_is_cut_or_filled_with_zeros() -> None:
    forced = VIEW.of(SEEN, replace(POLICY, cameras=("front", "wrist"), state_dim=3))
    assert list(forced.images) == ["front", "wrist"]
    assert list(forced.state) == [1, 2, 0]
    assert fitted(np.ones((3, 4)), 2).shape == (3, 2)
    assert fitted(np.ones((3, 2)), 4).sum(axis=1) == pytest.approx([2, 2, 2])

"""How a policy sees a simulator, and where the two do not fit together."""

from dataclasses import replace

import numpy as np
import pytest

from vlatrack.envs.base import EnvironmentInfo
from vlatrack.envs.base import Observation as Seen
from vlatrack.evaluation.actors import View, fitted, misfits
from vlatrack.inference.observation import Interface

INFO = EnvironmentInfo("point", 10, {"top": (2, 2)}, ("dx", "dy"), ("x", "y"))
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


def test_what_fits_has_no_misfits_and_each_misfit_has_both_values() -> None:
    assert misfits(POLICY, INFO, VIEW, history=1) == misfits(POLICY, INFO, VIEW, history=None) == []
    other = Interface(cameras=("front", "wrist"), state_dim=8, history=2, horizon=3, action_dim=7)
    assert misfits(other, INFO, replace(VIEW, cameras={"side": "front"}), history=1) == [
        "cameras: the policy sees wrist, the evaluation shows front",
        "cameras: the evaluation names side, the simulator has top",
        "history: the policy sees 2 moments, the evaluation asks for 1",
        "state: the policy has 8 numbers, the simulator 2",
        "action: the policy has 7 numbers, the simulator 2",
    ]


def test_what_is_forced_to_fit_is_cut_or_filled_with_zeros() -> None:
    forced = VIEW.of(SEEN, replace(POLICY, cameras=("front", "wrist"), state_dim=3))
    assert list(forced.images) == ["front", "wrist"]
    assert list(forced.state) == [1, 2, 0]
    assert fitted(np.ones((3, 4)), 2).shape == (3, 2)
    assert fitted(np.ones((3, 2)), 4).sum(axis=1) == pytest.approx([2, 2, 2])

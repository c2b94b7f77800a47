"""Where policy and evaluation do not fit together: each difference is told with both values."""

from dataclasses import replace

import pytest

from vlatrack.data.deltas import Deltas
from vlatrack.data.recorded import Recorded
from vlatrack.envs.base import EnvironmentInfo
from vlatrack.evaluation.actors import View
from vlatrack.evaluation.conventions import ImageSteps
from vlatrack.evaluation.fit import Conditions, misfits
from vlatrack.inference.observation import Interface

INFO = EnvironmentInfo("point", 10, {"top": (2, 2)}, ("dx", "dy"), ("x", "y"))
RECORDED = Recorded({"front": (2, 2)}, rotation=0, prompt="language", gripper="raw", waits=0)
POLICY = Interface(("front",), 2, 1, 3, 2, statistics="0123456789abcdef", recorded=RECORDED)
VIEW = View({"top": "front"}, rotated=False, blind=False)
CONDITIONS = Conditions(VIEW)


def test_what_fits_has_no_misfits() -> None:
    assert misfits(POLICY, CONDITIONS, INFO) == []
    asked = replace(CONDITIONS, history=1, horizon=3, statistics="01234567", gripper="sign")
    assert misfits(POLICY, asked, INFO) == []


def test_cameras_and_sizes_that_do_not_fit_are_told() -> None:
    other = replace(POLICY, cameras=("front", "wrist"), state_dim=8, action_dim=7)
    asked = replace(CONDITIONS, view=replace(VIEW, cameras={"side": "front"}))
    assert misfits(other, asked, INFO) == [
        "cameras: the policy sees wrist, the evaluation shows front",
        "cameras: the evaluation names side, the simulator has top",
        "state: the policy has 8 numbers, the simulator 2",
        "action: the policy has 7 numbers, the simulator 2",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"history": 2}, "history: the policy sees 1 moments, the evaluation asks for 2"),
        ({"horizon": 5}, "horizon: a chunk of the policy has 3 steps, the evaluation asks for 5"),
        ({"statistics": "fedcba98"}, "statistics: the policy has 0123456789ab, the evaluation asks for fedcba98"),
        ({"prompt": "name"}, "prompt: the policy was trained on a task's language, the evaluation gives its name"),
        ({"gripper": "openvla"}, "gripper: the policy was trained on raw, the evaluation takes it as openvla"),
        (
            {"waits": 10},
            "waits: the policy was trained on episodes that begin after 0 env steps, the evaluation's after 10",
        ),
        (
            {"view": replace(VIEW, rotated=True)},
            "rotation: the policy was trained on images turned by 0, the evaluation's by 180",
        ),
        (
            {"view": replace(VIEW, images=ImageSteps(size=4))},
            "resolution: the policy was trained on images of front of 2 x 2 pixels, the evaluation shows 4 x 4",
        ),
    ],
)
def test_each_difference_is_told_with_both_values(changes: dict, told: str) -> None:
    assert misfits(POLICY, replace(CONDITIONS, **changes), INFO) == [told]


def test_the_size_that_counts_is_what_the_policy_gets() -> None:
    large = replace(INFO, cameras={"top": (6, 8)})
    (told,) = misfits(POLICY, CONDITIONS, large)
    assert told.endswith("of 2 x 2 pixels, the evaluation shows 8 x 6")
    assert misfits(POLICY, replace(CONDITIONS, view=replace(VIEW, images=ImageSteps(size=2))), large) == []
    elsewhere = replace(CONDITIONS, resolution=4)
    assert "the evaluation shows 4 x 4" in misfits(POLICY, elsewhere)[0]
    assert misfits(POLICY, CONDITIONS) == [], "a simulator of one's own that is elsewhere does not tell"


def test_what_is_not_known_of_the_training_data_is_no_difference() -> None:
    unknown = replace(POLICY, statistics=None, recorded=Recorded())
    asked = replace(CONDITIONS, prompt="name", gripper="openvla", waits=10, statistics="fedcba98")
    assert misfits(unknown, replace(asked, view=replace(VIEW, rotated=True)), INFO) == []
    assert unknown.recorded.unknown(unknown.cameras) == ["resolution", "rotation", "prompt", "gripper", "waits"]
    assert RECORDED.unknown(("front",)) == []
    assert RECORDED.unknown(("front", "wrist")) == ["resolution"]


def test_a_policy_that_speaks_in_other_terms_fits_an_evaluation_that_converts_them() -> None:
    other = replace(POLICY, recorded=replace(RECORDED, rotation=180, prompt="name", gripper="openvla"))
    asked = replace(CONDITIONS, prompt="name", gripper="openvla", view=replace(VIEW, rotated=True))
    assert misfits(other, asked, INFO) == []
    assert len(misfits(other, CONDITIONS, INFO)) == 3


def test_a_policy_that_counts_seconds_fits_a_simulator_with_env_steps_at_its_moments() -> None:
    assert misfits(replace(POLICY, history=2, deltas=Deltas((-0.5, 0.0))), CONDITIONS, INFO) == []
    (told,) = misfits(replace(POLICY, history=2, deltas=Deltas((-0.25, 0.0))), CONDITIONS, INFO)
    assert told.startswith("data.history_deltas: the environment has 10 steps a second, and none 0.25 s before another")

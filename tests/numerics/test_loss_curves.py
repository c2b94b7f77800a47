"""Policies learn as they did when their loss curves were stored."""

import json

import pytest
from loss_curves import CURVES, STEPS, loss_curve

FIRST, LATER = 1e-5, 1e-3
"""Relative tolerances: other processors round otherwise, and training makes that larger step by step."""


@pytest.mark.parametrize("preset", ["tiny", pytest.param("small", marks=pytest.mark.slow)])
def test_losses_are_those_of_the_stored_curve(preset: str) -> None:
    stored = json.loads((CURVES / f"{preset}.json").read_text())["curve"]
    curve = loss_curve(preset)
    assert curve.keys() == stored.keys()
    for name, values in curve.items():
        assert len(values) == STEPS[preset]
        assert values[:2] == pytest.approx(stored[name][:2], rel=FIRST), name
        assert values == pytest.approx(stored[name], rel=LATER), name
    assert curve["loss"][-1] < 0.9 * curve["loss"][0]

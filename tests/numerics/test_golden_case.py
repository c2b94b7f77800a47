"""How golden files are read that hold what counts nowhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_case import LAYOUT, GoldenCase
from test_reference_forward import (
    test_predicted_actions_match_the_reference as check_predicted_actions,
)
from test_reference_forward import (
    test_slots_of_the_action_steps_are_the_references as check_slots,
)
from test_reference_forward import (
    test_step_errors_and_accuracies_match_the_reference as check_step_errors,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def case_without_action_rows(tmp_path: Path) -> GoldenCase:
    """The world-model rows of the mixed case, with the chunk that the reference's head makes of its dummy row."""
    with np.load(GOLDEN / "mixed_world_h5_d7.npz") as archive:
        arrays = dict(archive)
    kept = ~(arrays["labels"] == LAYOUT.action_start).any(axis=1)
    assert kept.any()
    chunk = np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7)
    arrays |= {name: arrays[name][kept] for name in ("input_ids", "labels")}
    np.savez(tmp_path / "world.npz", **arrays | {"predicted_actions": chunk})
    values = json.loads((GOLDEN / "mixed_world_h5_d7.json").read_text())
    values |= {"l1_by_step": [0.0] * 5, "acc_by_step": [None] * 5, "reference_l1_loss_action": [None] * 10}
    (tmp_path / "world.json").write_text(json.dumps(values))
    return GoldenCase.read(tmp_path, "world")


def test_a_case_without_action_rows_has_no_chunk_and_no_step_errors(case_without_action_rows: GoldenCase) -> None:
    case = case_without_action_rows
    assert case.predicted_actions is None
    assert case.l1_by_step == case.acc_by_step == []
    assert case.metrics["loss_ct"] == 0
    assert case.loss.item() == pytest.approx(case.metrics["closs"] + 1e-5 * case.metrics["z_loss"], rel=1e-6)


def test_a_case_without_action_rows_passes_the_checks_of_actions(case_without_action_rows: GoldenCase) -> None:
    for check in (check_predicted_actions, check_step_errors, check_slots):
        check(case_without_action_rows)


def test_a_case_with_action_rows_is_compared_chunk_by_chunk() -> None:
    case = GoldenCase.read(GOLDEN, "vla_h5_d7")
    assert len(case.l1_by_step) == 5
    assert case.predicted_actions is not None
    case.arrays["predicted_actions"] = case.arrays["predicted_actions"] + np.float32(1e-2)
    with pytest.raises(AssertionError, match="not close"):
        check_predicted_actions(case)
    assert torch.isfinite(case.predicted_actions).all()

"""Our policy against the reference implementation's numbers, case by case."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_case import LAYOUT, GoldenCase

from vlatrack.metrics.schema import step_slot
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.chameleon.pretrained import own_name


@pytest.fixture(scope="session")
def case(case_name: str, golden_dir: Path) -> GoldenCase:
    return GoldenCase.read(golden_dir, case_name)


@pytest.mark.parametrize("name", ["closs", "z_loss", "loss_ct", "loss"])
def test_losses_match_the_reference(case: GoldenCase, name: str) -> None:
    expected = case.values[name]
    if expected is None:  # z_loss is not computed when its weight is 0
        expected = 0.0
    assert case.metrics[name] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    if name == "loss":
        assert case.loss.item() == pytest.approx(expected, rel=1e-5)


def test_step_errors_and_accuracies_match_the_reference(case: GoldenCase) -> None:
    horizon = case.policy.action_head.time_horizon
    for family, expected in (("l1_loss_action", case.l1_by_step), ("acc_action", case.acc_by_step)):
        ours = [case.metrics.get(f"{family}_{step_slot(step, horizon)}") for step in range(horizon)]
        assert _given(ours) == pytest.approx(expected, rel=1e-5)


def test_slots_of_the_action_steps_are_the_references(case: GoldenCase) -> None:
    if len(case.l1_by_step) > 10:
        pytest.skip("the reference folds longer chunks into ten slots; ours keep one slot a step")
    ours = [case.metrics.get(f"l1_loss_action_{slot}") for slot in range(10)]
    reference = case.values["reference_l1_loss_action"]
    assert [v is None for v in ours] == [v is None for v in reference]
    assert _given(ours) == pytest.approx(_given(reference), rel=1e-5)


def test_image_accuracies_match_the_reference(case: GoldenCase) -> None:
    ours = [case.metrics.get(f"acc_image_{slot}") for slot in range(10)]
    reference = case.values["reference_acc_image"]
    assert [v is None for v in ours] == [v is None for v in reference]
    assert _given(ours) == pytest.approx(_given(reference), rel=1e-5)


def test_attention_mask_matches_the_reference(case: GoldenCase) -> None:
    mask = attention_mask(case.batch.input_ids, LAYOUT)
    assert np.array_equal(mask.numpy(), case.arrays["attention_mask"])


def test_hidden_states_and_logits_match_the_reference(case: GoldenCase) -> None:
    with torch.inference_mode():
        ids = case.batch.input_ids
        hidden = case.policy.backbone(ids, attention_mask(ids, LAYOUT))
        logits = hidden[:, ::5] @ case.policy.backbone.output_layer[10004:10264].t()
    for row, length in enumerate(case.arrays["lengths"]):
        expected = case.arrays["hidden_every_7th"][row]
        kept = -(-int(length) // 7)
        torch.testing.assert_close(hidden[row, ::7][:kept], torch.from_numpy(expected[:kept]), atol=1e-4, rtol=0)
        kept = -(-int(length) // 5)
        expected = torch.from_numpy(case.arrays["logits_action_range"][row][:kept])
        torch.testing.assert_close(logits[row, :kept], expected, atol=1e-4, rtol=1e-4)


def test_predicted_actions_match_the_reference(case: GoldenCase) -> None:
    actions = case.output.actions
    if case.predicted_actions is None:
        assert actions is None
        return
    assert actions is not None
    torch.testing.assert_close(actions.flatten(0, 1).detach(), case.predicted_actions, atol=1e-4, rtol=0)


def test_gradient_norms_match_the_reference(case: GoldenCase) -> None:
    case.policy.zero_grad()
    case.loss.backward(retain_graph=True)
    gradients = {name: parameter.grad for name, parameter in case.policy.named_parameters()}
    head_of_width = case.policy.backbone.chameleon.config.num_attention_heads
    for name, expected in case.values["grad_norm_by_parameter"].items():
        ours = gradients[own_name(name) or ""]
        if expected is None or ours is None:
            assert not expected
            continue
        if "self_attn.q_norm" in name or "self_attn.k_norm" in name:
            # One parameter shared by all heads in the reference: its gradient is the sum over ours.
            assert ours.shape[0] == head_of_width
            ours = ours.sum(0)
        assert ours.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-7), name


def _given(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]

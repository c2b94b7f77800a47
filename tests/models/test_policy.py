import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlatrack.errors import BackboneError, CheckpointError
from vlatrack.metrics.schema import MetricSchema
from vlatrack.metrics.states import MetricStates
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.chameleon.pretrained import CHAMELEON_WEIGHTS
from vlatrack.models.backbones.pretrained import copy_weights, read_tensors
from vlatrack.models.losses.base import non_finite_terms
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout

LAYOUT = TokenLayout()
SPLITS = [[0, 1, 2, 3, 4, 5, 6]], [[0], [1, 2, 3, 4], [5, 6]], [[1], [4], [0, 2, 3, 5, 6]]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("image_token_weight", [None, 0.04])
def test_means_over_unequal_batches_equal_the_full_batch(make_policy, rows, split, image_token_weight) -> None:
    policy = make_policy(image_token_weight=image_token_weight)
    with torch.inference_mode():
        whole = policy.metric_values(policy(collate(rows, LAYOUT)).states)
        states = MetricStates()
        for numbers in split:
            states = states + policy(collate([rows[i] for i in numbers], LAYOUT)).states
    assert policy.metric_values(states) == pytest.approx(whole, rel=1e-5)


def test_accumulated_gradient_equals_that_of_the_full_batch(make_policy, rows) -> None:
    gradients = []
    for split in SPLITS:
        policy = make_policy(image_token_weight=0.04)
        batches = [collate([rows[i] for i in numbers], LAYOUT) for numbers in split]
        by_batch = [policy.loss_counts(batch) for batch in batches]
        counts = {name: sum(counted[name] for counted in by_batch) for name in by_batch[0]}
        for batch in batches:
            policy.loss(policy(batch), counts).backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_optimised_loss_is_the_logged_one(make_policy, rows) -> None:
    policy, batch = make_policy(image_token_weight=0.04), collate(rows, LAYOUT)
    output = policy(batch)
    optimised = policy.loss(output, policy.loss_counts(batch)).item()
    assert policy.metric_values(output.states)["loss"] == pytest.approx(optimised, rel=1e-6)


def test_batch_without_action_rows_has_no_continuous_loss(make_policy, rows) -> None:
    policy, batch = make_policy(), collate([rows[1], rows[4]], LAYOUT)
    output = policy(batch)
    named = policy.metric_values(output.states)
    assert output.actions is None
    assert named["loss_ct"] == named["weighted_loss_ct"] == 0
    assert named["loss"] == pytest.approx(named["closs"] + 1e-5 * named["z_loss"])
    assert not [name for name in named if "action" in name]
    assert named["acc_image_9"] >= 0
    policy.loss(output, policy.loss_counts(batch)).backward()
    gradients = [parameter.grad for parameter in policy.action_head.parameters() if parameter.grad is not None]
    assert not any(gradient.any() for gradient in gradients)


def test_batch_without_any_label_trains_nothing_and_has_no_loss(make_policy, rows) -> None:
    policy = make_policy()
    silent = dataclasses.replace(rows[0], labels=np.full_like(rows[0].labels, -100), actions=None)
    batch = collate([silent], LAYOUT)
    output = policy(batch)
    named = policy.metric_values(output.states)
    assert all(math.isnan(named[name]) for name in ("closs", "z_loss", "loss_ct", "loss"))
    loss = policy.loss(output, policy.loss_counts(batch))
    loss.backward()
    assert loss.item() == 0


def test_z_loss_is_not_computed_when_its_weight_is_zero(make_policy, rows) -> None:
    policy = make_policy(z_loss_weight=0.0)
    output = policy(collate(rows, LAYOUT))
    assert output.totals["z_loss"].item() == 0
    assert policy.metric_values(output.states)["z_loss"] == 0


@pytest.mark.parametrize(("horizon", "slots"), [(1, [9]), (5, range(5, 10)), (8, range(2, 10)), (10, range(10))])
def test_every_action_step_has_its_right_aligned_name(make_policy, horizon, slots) -> None:
    names = make_policy(horizon=horizon).metric_values(_states_with_rows(horizon))
    assert [name for name in names if name.startswith("l1_loss_action_")] == [f"l1_loss_action_{x}" for x in slots]


def test_twenty_action_steps_keep_twenty_names(make_policy) -> None:
    names = make_policy(horizon=20).metric_values(_states_with_rows(20))
    assert [name for name in names if name.startswith("l1_loss_action_")] == [f"l1_loss_action_{x}" for x in range(20)]


def test_every_measured_name_is_declared_in_the_schema(make_policy, rows) -> None:
    policy = make_policy()
    named = policy.metric_values(policy(collate(rows, LAYOUT)).states)
    schema = MetricSchema.for_experiment(horizon=3, action_dim=2)
    schema.check(f"val_ind_{name}" for name in named)
    empty_slots = {f"acc_image_{slot}" for slot in range(9)}
    missing = {name.removeprefix("val_ind_") for name in schema.names("val_ind")} - set(named)
    from_other_passes = {name for name in missing if name.startswith(("l1_loss_free", "psnr_", "ssim_"))}
    assert missing == empty_slots | from_other_passes | {"acc_image_codes_copied", "acc_image_codes_generated"}


def test_calibration_is_measured_where_a_policy_is_evaluated_not_while_it_trains(make_policy, rows) -> None:
    policy, batch = make_policy(), collate(rows, LAYOUT)
    states = policy(batch).states
    numbers = 6 * len(batch.action_rows)  # three steps of two numbers
    assert states["action_hits"].count.sum() == numbers
    layer, first = policy.backbone.output_layer, LAYOUT.action_start + 2
    bins = layer[first : first + len(policy.centres) + 1]
    hidden = policy.backbone(batch.input_ids, attention_mask(batch.input_ids, LAYOUT))
    supervised = hidden.flatten(0, 1)[batch.supervised][batch.action_index]
    likely = (supervised @ bins.T).softmax(-1).max(-1)
    assert states["action_confidence"].total.sum().item() == pytest.approx(likely.values.sum().item(), rel=1e-5)
    hits = (likely.indices + first == batch.targets[batch.action_index]).sum()
    assert states["action_hits"].total.sum() == hits
    policy.train()
    assert "action_hits" not in policy(batch).states


def test_raw_targets_measure_the_head_against_the_actions_before_binning(make_policy, rows) -> None:
    policy = make_policy(ct_target="raw")
    output = policy(collate([rows[0]], LAYOUT))
    expected = (output.actions - torch.from_numpy(rows[0].actions)).abs().sum(0)
    torch.testing.assert_close(output.states["loss_ct"].total, expected.detach().double())


def test_residual_dropout_acts_in_training_only_and_names_no_new_parameter(make_policy, rows) -> None:
    plain, dropping = make_policy(), make_policy(residual_dropout=0.5)
    batch = collate(rows, LAYOUT)
    assert plain.state_dict().keys() == dropping.state_dict().keys()

    def closs(policy) -> float:
        return policy(batch).totals["closs"].item()

    assert closs(dropping) == closs(plain)
    dropping.train()
    dropping.action_head.eval()
    assert closs(dropping) != closs(dropping)


def test_answer_steps_do_not_depend_on_one_another(make_policy, rows) -> None:
    policy, batch = make_policy(), collate([rows[0]], LAYOUT)
    changed = batch.input_ids.clone()
    first_number = int(batch.prompt_lengths[0]) + 1
    changed[0, first_number] += 1
    with torch.inference_mode():
        before, after = (policy.backbone(ids, attention_mask(ids, LAYOUT))[0] for ids in (batch.input_ids, changed))
    block = 4  # two numbers between a start and an end token
    assert not torch.equal(before[first_number], after[first_number])
    torch.testing.assert_close(before[first_number - 1 + block :][:block], after[first_number - 1 + block :][:block])


def test_a_reference_state_dict_of_another_chunk_is_refused_by_name(make_policy) -> None:
    state = {"action_head.action_token_embeddings.weight": torch.zeros(1, 5 * 2 * 32)}
    with pytest.raises(CheckpointError, match=r"action_token_embeddings.weight.*\[1, 320\].*\[6, 32\]"):
        copy_weights(make_policy(), state.items(), CHAMELEON_WEIGHTS)


def test_a_state_dict_without_the_head_leaves_the_head_alone(make_policy) -> None:
    policy = make_policy()
    state = {
        name.removeprefix("backbone.chameleon."): value + 1
        for name, value in policy.state_dict().items()
        if name.startswith("backbone.")
    }
    before = policy.action_head.queries.clone()
    assert copy_weights(policy, state.items(), CHAMELEON_WEIGHTS) is False
    assert torch.equal(policy.action_head.queries, before)
    assert torch.equal(policy.backbone.chameleon.lm_head.weight, state["lm_head.weight"])


def test_a_state_dict_with_a_missing_layer_is_refused(make_policy) -> None:
    only = make_policy().backbone.chameleon.lm_head.weight.detach()
    with pytest.raises(CheckpointError, match=r"lacks .* the first is backbone\.chameleon\.model"):
        copy_weights(make_policy(), [("lm_head.weight", only)], CHAMELEON_WEIGHTS)


def test_a_truncated_safetensors_file_is_refused(tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="unreadable or truncated"):
        list(read_tensors(file))


class _Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys) -> None:
    file = tmp_path / "model.bin"
    torch.save({"weight": torch.zeros(1), "payload": _Payload()}, file)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        list(read_tensors(file))
    assert "executed" not in capsys.readouterr().out


def _states_with_rows(horizon: int) -> MetricStates:
    return MetricStates.of({name: (torch.zeros(horizon, 2), 4) for name in ("l1_loss_action", "acc_action", "loss_ct")})


def test_metrics_of_rows_whose_logits_are_not_finite_are_nan(make_policy, rows) -> None:
    policy, batch = make_policy(), collate(rows, LAYOUT)
    with torch.no_grad():
        policy.backbone.output_layer[17].fill_(torch.nan)  # one logit of each position
    output = policy(batch)
    named = policy.metric_values(output.states)
    broken = [name for name in named if name.startswith(("closs", "z_loss", "l1_loss_action", "l1_loss_dim", "acc_"))]
    # losses, L1 by step and overall, by dimension, accuracies, one image slot, image codes
    assert len(broken) == 2 + 4 + 2 + 4 + 1 + 2
    assert all(math.isnan(named[name]) for name in broken)
    assert math.isfinite(named["loss_ct"])
    assert non_finite_terms(output.totals) == ["closs", "z_loss"]


def test_one_row_that_is_not_finite_makes_the_window_nan_and_leaves_other_batches_alone(make_policy, rows) -> None:
    policy = make_policy()
    with torch.no_grad():  # a word that the first row alone has
        policy.backbone.chameleon.model.embed_tokens.weight[rows[0].input_ids[2]].fill_(torch.nan)
    others = policy(collate([rows[2]], LAYOUT)).states
    assert math.isfinite(policy.metric_values(others)["acc_action"])
    together = policy.metric_values(policy(collate([rows[0]], LAYOUT)).states + others)
    assert all(
        math.isnan(together[name]) for name in ("closs", "z_loss", "loss_ct", "l1_loss_action_7", "acc_action_9")
    )


def test_infinite_losses_stay_infinite(make_policy, rows) -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.output_layer.mul_(1e30)  # finite logits, whose squares overflow
    output = policy(collate(rows, LAYOUT))
    named = policy.metric_values(output.states)
    assert named["z_loss"] == math.inf
    assert math.isfinite(named["closs"])
    assert math.isfinite(named["acc_action"])
    assert non_finite_terms(output.totals) == ["z_loss"]


def test_hidden_states_of_another_length_are_an_error(make_policy, rows, monkeypatch) -> None:
    policy, batch = make_policy(), collate(rows, LAYOUT)
    forward = policy.backbone.forward
    monkeypatch.setattr(policy.backbone, "forward", lambda ids, mask: forward(ids, mask)[:, 1:])
    with pytest.raises(
        BackboneError, match=r"backbone ChameleonBackbone: forward\(\) returned .*; expected hidden states"
    ):
        policy(batch)

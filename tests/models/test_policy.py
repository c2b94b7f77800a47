import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlatrack.errors import CheckpointError
from vlatrack.metrics.schema import MetricSchema
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.chameleon.pretrained import CHAMELEON_WEIGHTS
from vlatrack.models.backbones.pretrained import copy_weights, read_tensors
from vlatrack.models.losses.sums import Denominators, LossSums, LossWeights, documented_losses
from vlatrack.models.measurements import measurements
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout

LAYOUT = TokenLayout()
SPLITS = [[0, 1, 2, 3, 4, 5, 6]], [[0], [1, 2, 3, 4], [5, 6]], [[1], [4], [0, 2, 3, 5, 6]]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("image_token_weight", [None, 0.04])
def test_means_over_unequal_batches_equal_the_full_batch(make_policy, rows, split, image_token_weight) -> None:
    policy = make_policy(image_token_weight=image_token_weight)
    with torch.inference_mode():
        whole = measurements(policy(collate(rows, LAYOUT)).sums.detached(), policy.weights)
        sums = LossSums.zeros(3, 2)
        for numbers in split:
            sums = sums + policy(collate([rows[i] for i in numbers], LAYOUT)).sums.detached()
    assert measurements(sums, policy.weights) == pytest.approx(whole, rel=1e-5)


def test_accumulated_gradient_equals_that_of_the_full_batch(make_policy, rows) -> None:
    gradients = []
    for split in SPLITS:
        policy = make_policy(image_token_weight=0.04)
        batches = [collate([rows[i] for i in numbers], LAYOUT) for numbers in split]
        denominators = Denominators.of(batches, 0.04)
        for batch in batches:
            documented_losses(policy(batch).sums, policy.weights, denominators).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_batch_without_action_rows_has_no_continuous_loss(make_policy, rows) -> None:
    policy = make_policy()
    output = policy(collate([rows[1], rows[4]], LAYOUT))
    losses = documented_losses(output.sums, policy.weights)
    assert output.actions is None
    assert losses.loss_ct.item() == 0
    assert losses.loss.item() == pytest.approx(losses.closs.item() + 1e-5 * losses.z_loss.item())
    losses.loss.backward()
    named = measurements(output.sums.detached(), policy.weights)
    assert not [name for name in named if "action" in name]
    assert named["acc_image_9"] >= 0


def test_batch_without_any_label_has_zero_losses(make_policy, rows) -> None:
    policy = make_policy()
    silent = dataclasses.replace(rows[0], labels=np.full_like(rows[0].labels, -100), actions=None)
    losses = documented_losses(policy(collate([silent], LAYOUT)).sums, policy.weights)
    assert [losses.closs.item(), losses.z_loss.item(), losses.loss_ct.item(), losses.loss.item()] == [0, 0, 0, 0]
    losses.loss.backward()


def test_z_loss_is_not_computed_when_its_weight_is_zero(make_policy, rows) -> None:
    policy = make_policy(z_loss_weight=0.0)
    assert documented_losses(policy(collate(rows, LAYOUT)).sums, policy.weights).z_loss.item() == 0


@pytest.mark.parametrize(("horizon", "slots"), [(1, [9]), (5, range(5, 10)), (8, range(2, 10)), (10, range(10))])
def test_every_action_step_has_its_right_aligned_name(horizon, slots) -> None:
    names = measurements(_sums_with_rows(horizon), LossWeights())
    assert [name for name in names if name.startswith("l1_loss_action_")] == [f"l1_loss_action_{x}" for x in slots]


def test_twenty_action_steps_keep_twenty_names() -> None:
    names = measurements(_sums_with_rows(20), LossWeights())
    assert [name for name in names if name.startswith("l1_loss_action_")] == [f"l1_loss_action_{x}" for x in range(20)]


def test_every_measured_name_is_declared_in_the_schema(make_policy, rows) -> None:
    policy = make_policy()
    named = measurements(policy(collate(rows, LAYOUT)).sums.detached(), policy.weights)
    schema = MetricSchema.for_experiment(horizon=3, action_dim=2)
    schema.check(f"val_ind_{name}" for name in named)
    empty_slots = {f"acc_image_{slot}" for slot in range(9)}
    missing = {name.removeprefix("val_ind_") for name in schema.names("val_ind")} - set(named)
    assert missing == empty_slots


def test_raw_targets_measure_the_head_against_the_actions_before_binning(make_policy, rows) -> None:
    policy = make_policy()
    batch = collate([rows[0]], LAYOUT)
    policy.ct_target = "raw"
    output = policy(batch)
    expected = (output.actions - torch.from_numpy(rows[0].actions)).abs().sum(0)
    torch.testing.assert_close(output.sums.head_error, expected)


def test_residual_dropout_acts_in_training_only_and_names_no_new_parameter(make_policy, rows) -> None:
    plain, dropping = make_policy(), make_policy(residual_dropout=0.5)
    batch = collate(rows, LAYOUT)
    assert plain.state_dict().keys() == dropping.state_dict().keys()

    def closs(policy) -> float:
        return policy(batch).sums.cross_entropy.item()

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


def _sums_with_rows(horizon: int) -> LossSums:
    return dataclasses.replace(LossSums.zeros(horizon, 2), action_rows=torch.tensor(4.0))

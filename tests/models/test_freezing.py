"""Parameters that `train.freeze` names stay as they are."""

import pytest
import torch

from vlatrack.errors import SpecError
from vlatrack.models.freezing import freeze
from vlatrack.tokens.batch import collate
from vlatrack.training.optimizers import adamw, parameter_groups


def test_what_matches_a_pattern_is_neither_given_to_the_optimiser_nor_changed(make_policy, rows) -> None:
    policy = make_policy().train()
    freeze(policy, ["*.layers.0.*", "action_head.queries"])
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = adamw(parameter_groups(policy, [], lr=1e-2), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    batch = collate(rows, policy.layout)
    policy.loss(policy(batch), policy.loss_counts(batch)).backward()
    optimizer.step()
    same = {name for name, value in policy.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if ".layers.0." in name} | {"action_head.queries"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before) - len(same)


def test_a_batch_without_actions_has_a_graph_when_only_a_part_of_the_head_is_trained(make_policy, rows) -> None:
    policy = make_policy().train()
    freeze(policy, ["backbone.*", "action_head.queries"])
    batch = collate([row for row in rows if row.actions is None], policy.layout)
    policy.loss(policy(batch), policy.loss_counts(batch)).backward()
    assert sum(parameter.grad is not None for parameter in policy.action_head.parameters()) == 1


def test_a_pattern_that_matches_nothing_is_one_line_with_names_close_to_it(make_policy) -> None:
    message = r"^train.freeze: 'action_head.query' matches no parameter; there are action_head.queries, .* and others$"
    with pytest.raises(SpecError, match=message):
        freeze(make_policy(), ["backbone.*", "action_head.query"])


def test_a_policy_with_nothing_left_to_train_is_refused_in_one_line(make_policy) -> None:
    with pytest.raises(SpecError, match=r"^train.freeze: every parameter [^\n]*$"):
        freeze(make_policy(), ["backbone.*", "action_head.*"])

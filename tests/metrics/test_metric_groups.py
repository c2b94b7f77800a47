import pytest

from vlatrack.metrics.grouping import documented_name, grouped, is_documented
from vlatrack.metrics.schema import MetricSchema


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train_z_loss", "train_z_loss"),
        ("val_ood_l1_loss_action_12", "val_ood_l1_loss_action_12"),
        ("train_acc_action_5", "action/train_acc_action_5"),
        ("val_ind_l1_loss_head_17", "head/val_ind_l1_loss_head_17"),
        ("train_weighted_smoothness", "loss/train_weighted_smoothness"),
        ("train_gradient_share_smoothness", "optim/train_gradient_share_smoothness"),
        ("train_lr_action_head", "optim/train_lr_action_head"),
        ("epoch", "progress/epoch"),
        ("train_smoothness", "train_smoothness"),
        ("reward", "reward"),
        ("system/cpu_percent", "system/cpu_percent"),
        ("evaluate/val_ind_closs", "evaluate/val_ind_closs"),
        ("sim/arena/success", "sim/arena/success"),
    ],
)
def test_what_is_not_documented_stands_in_its_group(name: str, key: str) -> None:
    assert grouped(name) == key
    assert documented_name(key) == name


def test_losses_and_chunk_steps_alone_stand_at_the_top_and_every_key_leads_back() -> None:
    schema = MetricSchema.for_experiment(horizon=5, action_dim=7)
    at_the_top = [name for name in schema.names() if "/" not in grouped(name)]
    assert at_the_top == [name for name in schema.names() if is_documented(name)]
    assert len(at_the_top) == 3 * (4 + 5)
    keys = [grouped(name) for name in schema.names()]
    assert [documented_name(key) for key in keys] == list(schema.names())
    assert documented_name("train/closs") == "train_closs"

import math
import os
import subprocess
import sys

import pytest
from program import ENVIRONMENT

from vlatrack.errors import UndeclaredMetricWarning
from vlatrack.metrics.losses import DOCUMENTED_LOSSES, LossMetric
from vlatrack.metrics.schema import Direction, MetricSchema, chunk_horizon, documented, sectioned, step_slot


@pytest.fixture
def schema() -> MetricSchema:
    return MetricSchema.for_experiment(horizon=5, action_dim=4)


@pytest.mark.parametrize(
    ("horizon", "slots"),
    [(1, [9]), (5, [5, 6, 7, 8, 9]), (8, list(range(2, 10))), (10, list(range(10))), (20, list(range(20)))],
)
def test_step_indexes_are_right_aligned_in_ten_slots_or_more(horizon: int, slots: list[int]) -> None:
    assert [step_slot(step, horizon) for step in range(horizon)] == slots


def test_a_step_outside_the_chunk_has_no_slot() -> None:
    for step in (-1, 5):
        with pytest.raises(AssertionError):
            step_slot(step, 5)


def test_documented_names_of_a_chunk_of_five_are_declared_for_every_split(schema: MetricSchema) -> None:
    losses = ["closs", "z_loss", "loss_ct", "loss", *(f"l1_loss_action_{x}" for x in range(5, 10))]
    schema.check(f"{split}_{name}" for split in ("train", "val_ind", "val_ood") for name in losses)
    assert "train_l1_loss_action_4" not in schema
    assert "train_l1_loss_action_10" not in schema
    assert schema["val_ood_l1_loss_action_5"].step == 0
    assert schema["train_l1_loss_head_9"].step == 4


@pytest.mark.parametrize("horizon", [1, 5, 10, 20])
def test_the_smallest_schema_around_some_names_declares_them_all(horizon: int) -> None:
    names = MetricSchema.for_experiment(horizon=horizon, action_dim=3, image_slots=12).names()
    MetricSchema.covering(names).check(names)
    assert chunk_horizon(names) == horizon
    assert chunk_horizon(["train_closs", "val_ind_l1_loss_action_6"]) == 4
    assert "train_l1_loss_action_5" not in MetricSchema.covering(["train_l1_loss_action_6", "odd"])


def test_per_dimension_names_follow_the_action_dimension(schema: MetricSchema) -> None:
    assert schema.names("train_l1_loss_dim_") == tuple(f"train_l1_loss_dim_{d}" for d in range(4))
    assert len(schema.names("val_ind_l1_loss_head_dim_")) == 4


def test_speed_and_optimiser_exist_for_training_only(schema: MetricSchema) -> None:
    assert schema["train_lr"].group == "optim"
    assert "val_ind_lr" not in schema
    assert "epoch" in schema


def test_every_metric_explains_itself(schema: MetricSchema) -> None:
    assert len(schema) == len(schema.names()) == len(set(schema.names()))
    for metric in schema:
        assert metric.meaning
        assert metric.unit
        assert metric.group
    directions = {name: schema[f"train_{name}"].direction for name in ("closs", "acc_action", "grad_norm")}
    assert directions == {"closs": Direction.LOWER, "acc_action": Direction.HIGHER, "grad_norm": Direction.NONE}


def test_an_undeclared_name_is_warned_of_once_with_the_nearest_name(schema: MetricSchema) -> None:
    with pytest.warns(UndeclaredMetricWarning, match=r"undeclared metric: train_closss \(did you mean train_closs\?\)"):
        schema.check(["train_closs", "train_closss"])
    schema.check(["train_closss"])  # a second warning would fail this test
    with pytest.raises(KeyError, match="undeclared metric: qqq"):
        schema["qqq"]


def test_an_undeclared_name_fails_where_warnings_are_errors(schema: MetricSchema) -> None:
    with pytest.raises(UndeclaredMetricWarning, match="undeclared metric: train_lr2"):
        schema.check(["train_lr2"])


@pytest.mark.parametrize("in_tests", [True, False])
def test_a_process_that_logs_an_undeclared_name_fails_in_tests_and_is_warned_once_otherwise(in_tests: bool) -> None:
    code = (
        "from vlatrack.metrics.schema import MetricSchema\n"
        "schema = MetricSchema.for_experiment(horizon=1, action_dim=1)\n"
        "for _ in range(3): schema.check(['train_lr2'])\n"
    )
    environment = os.environ | ENVIRONMENT | ({} if in_tests else {"PYTHONWARNINGS": ""})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.count("UndeclaredMetricWarning: undeclared metric: train_lr2 (did you mean train_lr?)") == 1
    assert done.returncode == (1 if in_tests else 0)


@pytest.mark.parametrize(
    ("name", "value", "than", "better"),
    [
        ("val_ind_loss_ct", 0.1, 0.2, True),
        ("val_ind_loss_ct", 0.2, 0.2, False),
        ("val_ind_loss_ct", 0.3, 0.2, False),
        ("val_ood_acc_action", 0.3, 0.2, True),
        ("val_ood_acc_action", 0.1, 0.2, False),
        ("val_ind_loss_ct", 9.9, None, True),
        ("val_ind_loss_ct", math.nan, None, False),
        ("val_ind_loss_ct", -math.inf, 0.2, False),
        ("val_ood_acc_action", math.inf, 0.2, False),
        ("val_ood_acc_action", 0.0, math.nan, True),
    ],
)
def test_better_follows_the_direction_and_is_never_what_is_not_finite(
    schema: MetricSchema, name: str, value: float, than: float | None, better: bool
) -> None:
    assert schema.is_better(name, value, than) is better


def test_no_value_is_better_of_a_metric_without_direction(schema: MetricSchema) -> None:
    with pytest.raises(ValueError, match="neither lower nor higher is better of train_lr"):
        schema.is_better("train_lr", 1.0, 2.0)
    with pytest.raises(KeyError, match="did you mean val_ind_loss_ct"):
        schema.is_better("val_ind_los_ct", 1.0, 2.0)


def test_own_loss_terms_are_declared_in_every_split_and_found_by_their_names() -> None:
    smoothness = LossMetric("smoothness", "mean squared second difference of the head's actions")
    schema = MetricSchema.for_experiment(horizon=5, action_dim=4, losses={**DOCUMENTED_LOSSES, smoothness: 0.1})
    assert schema["val_ood_smoothness"].meaning == smoothness.meaning
    assert schema["train_weighted_smoothness"].direction == Direction.LOWER
    assert schema["train_gradient_share_smoothness"].unit == "fraction"
    assert "weighted_smoothness" in schema["train_loss"].meaning
    covering = MetricSchema.covering(schema.names())
    assert set(covering.names()) == set(schema.names())
    assert "train_smoothness" not in MetricSchema.covering(["train_closs"])


def test_learning_rates_of_parameter_groups_are_declared_and_found_by_their_names() -> None:
    schema = MetricSchema.for_experiment(horizon=5, action_dim=4, groups=["action_head", "bias"])
    assert (schema["train_lr_bias"].group, schema["train_lr_bias"].direction) == ("optim", Direction.NONE)
    assert "val_ind_lr_bias" not in schema
    assert set(MetricSchema.covering(schema.names()).names()) == set(schema.names())


def test_sections_naming_is_reversible_for_every_declared_name(schema: MetricSchema) -> None:
    assert sectioned("train_closs") == "train/closs"
    assert sectioned("val_ind_l1_loss_action_5") == "val_ind/l1_loss_action_5"
    assert sectioned("epoch") == "epoch"
    for name in schema.names():
        assert documented(sectioned(name)) == name
        assert documented(name) == name

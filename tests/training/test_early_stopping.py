"""`train.early_stopping`: when a training ends before its last epoch."""

import math

import pytest
from program import TOY

from vlatrack.builders.policy import build_schema
from vlatrack.builders.training import build_early_stopping
from vlatrack.metrics.states import MetricStates
from vlatrack.spec.load import load_spec
from vlatrack.training.callback import SplitResult
from vlatrack.training.early_stopping import EarlyStopping
from vlatrack.training.state import TrainState


def watching(metric: str, patience: int = 2) -> EarlyStopping:
    spec = load_spec(TOY, [f"train.early_stopping={{metric: {metric}, patience: {patience}}}"])
    early_stopping = build_early_stopping(spec, build_schema(spec))
    assert early_stopping is not None
    return early_stopping


@pytest.mark.parametrize(
    ("metric", "values", "ends_after"),
    [
        ("val_ind_loss_ct", [0.5, 0.6, 0.4, 0.4, 0.5], 5),
        ("val_ind_loss_ct", [0.5, 0.4, 0.3, 0.2], None),
        ("val_ind_acc_action", [0.5, 0.6, 0.5, 0.6], 4),
        ("val_ind_closs", [math.nan, math.nan], 2),
        ("val_ind_closs", [math.nan, 9.0, math.nan, 8.0], None),
    ],
)
def test_a_training_ends_when_so_many_values_in_a_row_are_not_better_than_the_best(
    metric: str, values: list[float], ends_after: int | None
) -> None:
    early_stopping = watching(metric)
    ended = []
    for number, value in enumerate(values, start=1):
        result = SplitResult({metric.removeprefix("val_ind_"): value}, MetricStates())
        early_stopping.on_epoch(TrainState(step=10 * number), {"val_ind": result})
        if early_stopping.reason_to_stop() is not None:
            ended.append(number)
    assert ended[:1] == ([] if ends_after is None else [ends_after])


def test_the_reason_names_the_metric_and_its_best() -> None:
    early_stopping = watching("val_ind_loss_ct")
    early_stopping.observe([(10, 0.5), (20, 0.25), (30, 0.3), (40, 0.3)])
    assert early_stopping.reason_to_stop() == ("no better than 0.25 at step 20 in the last 2 values of val_ind_loss_ct")


def test_what_a_rollback_takes_back_does_not_count() -> None:
    early_stopping = watching("val_ind_loss_ct")
    early_stopping.observe([(10, 0.5), (20, 0.6), (30, 0.7)])
    early_stopping.on_rollback(TrainState(step=20), from_step=35)
    assert early_stopping.reason_to_stop() is None


def test_values_that_come_late_count_at_their_step() -> None:
    early_stopping = watching("val_ind_loss_ct")
    early_stopping.observe([(30, 0.5)])
    early_stopping.observe([(10, 0.7), (20, 0.6)])
    assert early_stopping.reason_to_stop() is None


def test_without_a_metric_of_its_own_it_watches_that_of_the_best_checkpoint() -> None:
    spec = load_spec(TOY, ["train.early_stopping.patience=1", "train.checkpoint.best_metric=train_closs"])
    early_stopping = build_early_stopping(spec, build_schema(spec))
    assert early_stopping is not None
    assert early_stopping.metric == "train_closs"
    assert not early_stopping.has_values

"""Calibration of the action tokens: confidence among the bins against the share that is right."""

import math

import pytest
import torch

from vlatrack.metrics.declarations import calibration_table, split_metrics
from vlatrack.metrics.losses import DOCUMENTED_LOSSES
from vlatrack.metrics.metric import metric_values
from vlatrack.models.calibration import calibration_states

METRICS = tuple(split_metrics(horizon=1, action_dim=1, image_slots=1, losses=DOCUMENTED_LOSSES))


def states_of(probabilities: list[list[float]], labels: list[int]):
    logits = torch.tensor(probabilities).log()
    return calibration_states(logits, torch.eye(len(probabilities[0])), torch.tensor(labels))


def test_it_is_the_mean_distance_of_confidence_and_accuracy_over_tenths_of_confidence() -> None:
    sure, unsure = [0.95, 0.03, 0.02], [0.2, 0.42, 0.38]
    states = states_of([sure, sure, sure, sure, unsure, unsure], [0, 0, 0, 1, 1, 2])
    expected = (4 * abs(0.95 - 3 / 4) + 2 * abs(0.42 - 1 / 2)) / 6
    assert metric_values(METRICS, states)["ece_action"] == pytest.approx(expected, abs=1e-6)
    low, high = calibration_table(states)
    assert low == pytest.approx({"from": 0.4, "to": 0.5, "tokens": 2, "confidence": 0.42, "accuracy": 0.5})
    assert high == pytest.approx({"from": 0.9, "to": 1.0, "tokens": 4, "confidence": 0.95, "accuracy": 0.75})


def test_batches_add_up_to_the_value_on_all_of_them() -> None:
    rows, labels = [[0.75, 0.25], [0.75, 0.25], [0.72, 0.28], [0.98, 0.02]], [0, 1, 0, 0]
    parts = states_of(rows[:1], labels[:1]) + states_of(rows[1:], labels[1:])
    whole = states_of(rows, labels)
    assert metric_values(METRICS, parts)["ece_action"] == pytest.approx(metric_values(METRICS, whole)["ece_action"])


def test_logits_that_are_not_finite_make_it_nan() -> None:
    states = states_of([[0.7, 0.3], [math.nan, math.nan]], [0, 0])
    assert math.isnan(metric_values(METRICS, states)["ece_action"])


def test_the_schema_leaves_it_out_where_there_are_no_action_tokens() -> None:
    from vlatrack.metrics.states import MetricStates

    assert calibration_table(MetricStates()) == []
    assert "ece_action" not in metric_values(METRICS, MetricStates())

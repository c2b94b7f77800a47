"""Bins and step metrics against the reference's tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_case import LAYOUT

from vlatrack.metrics.declarations import split_metrics
from vlatrack.metrics.metric import metric_values
from vlatrack.metrics.schema import step_slot
from vlatrack.models.losses.base import LossInputs
from vlatrack.models.token_metrics import token_metric_states
from vlatrack.tokens.batch import index_rows
from vlatrack.tokens.bins import Bins, ValueRange, decode_ids


def _read(golden_dir: Path, name: str):
    file = golden_dir / name
    if not file.exists():
        pytest.skip(f"{name} is not among the golden files")
    return json.loads(file.read_text())


def test_actions_become_the_references_ids_and_back(golden_dir: Path) -> None:
    table = _read(golden_dir, "action_bins.json")
    bins, value_range = Bins(table["bins"]), ValueRange(tuple(table["low"]), tuple(table["high"]))
    normalised = value_range.normalise(np.asarray(table["actions"]))
    ids = bins.encode(normalised, start=LAYOUT.action_start)
    np.testing.assert_allclose(normalised, table["normalized"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ids, table["token_ids"])
    decoded = decode_ids(ids, bins.centres, start=LAYOUT.action_start)
    np.testing.assert_allclose(decoded, table["decoded_normalized"], rtol=0, atol=1e-12)


def test_step_metrics_match_the_references_slots(golden_dir: Path) -> None:
    for case in _read(golden_dir, "step_metrics.json"):
        horizon, dims = case["horizon"], case["action_dim"]
        labels, argmax = np.asarray(case["labels"]), np.asarray(case["argmax_ids"])
        batch = index_rows(np.where(labels < 0, 0, labels), labels, LAYOUT)
        predicted = torch.from_numpy(argmax).flatten()[batch.supervised]
        nothing, centres = torch.zeros(len(predicted)), torch.from_numpy(Bins().centres)
        inputs = LossInputs(
            batch=batch,
            nll=nothing,
            logsumexp=nothing,
            predicted=predicted,
            hidden=nothing,
            actions=None,
            label_actions=decode_ids(batch.targets[batch.action_index], centres, start=LAYOUT.action_start),
        )
        metrics = metric_values(
            split_metrics(horizon=horizon, action_dim=dims, image_slots=10, losses={}),
            token_metric_states(inputs, LAYOUT, centres),
        )
        for family, expected in (
            ("l1_loss_action", case["reference_l1_loss_action"]),
            ("acc_action", case["reference_acc_action"]),
        ):
            slots = [step_slot(step, horizon) for step in range(horizon)]
            ours = {slot: metrics[f"{family}_{slot}"] for slot in slots}
            assert ours == pytest.approx({i: v for i, v in enumerate(expected) if v is not None}, rel=1e-5)

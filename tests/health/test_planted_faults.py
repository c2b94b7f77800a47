"""Every detector finds the fault that is planted in the curves of a real run, within three windows of its beginning."""

import math

import pytest
from health_curves import CLEAN, Change, Line, curves, findings, planted, windows_until

from vlatrack.health.finding import Severity
from vlatrack.health.thresholds import Plateau, Thresholds

AT = {run: sum(line.is_window for line in curves(run)) // 2 for run in CLEAN}
"""The window with which a fault begins, by run: in the middle."""
WITHIN = 3


def nan(since: int, values: dict[str, float]) -> None:
    values["train_loss_ct"] = values["train_loss"] = math.nan


def spike(since: int, values: dict[str, float]) -> None:
    if since == 0:
        values["train_closs"] *= 8
        values["train_loss"] *= 8


def collapse(since: int, values: dict[str, float]) -> None:
    """The accuracy of the tokens is that of guessing: a spike of a metric of which more is better."""
    for name in values:
        if name.startswith("train_acc_action"):
            values[name] = 0.0


def divergence(since: int, values: dict[str, float]) -> None:
    for name in ("train_closs", "train_loss"):
        values[name] *= 1.7 ** (since + 1)


def unbounded(since: int, values: dict[str, float]) -> None:
    values["train_z_loss"] *= 3.0 ** (since + 1)


def step_out_of_line(since: int, values: dict[str, float]) -> None:
    for name in ("train_l1_loss_action_9", "train_l1_loss_head_9"):
        values[name] = 3 * values[name]


def burst(since: int, values: dict[str, float]) -> None:
    values["train_grad_norm"] *= 8 if since < 4 else 1


def halved(since: int, values: dict[str, float]) -> None:
    values["train_tokens_per_s"] *= 0.5


def waiting(since: int, values: dict[str, float]) -> None:
    values["train_data_wait_s"] = 0.5 * values["train_step_time_s"]


FAULTS: dict[str, tuple[str, Change]] = {
    "nan": ("not_finite", nan),
    "spike": ("spike", spike),
    "divergence": ("divergence", divergence),
    "z_loss": ("z_loss", unbounded),
    "gradients": ("gradient_burst", burst),
    "data": ("data_wait", waiting),
}


@pytest.mark.parametrize("run", CLEAN)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_within_three_windows(run: str, fault: str) -> None:
    detector, change = FAULTS[fault]
    windows = windows_until(planted(curves(run), change, at=AT[run]), detector, at=AT[run])
    assert windows is not None
    assert 1 <= windows <= WITHIN


@pytest.mark.parametrize("run", ["quickstart-0", "seeing-1"])
def test_a_chunk_step_out_of_line_is_found_within_three_windows(run: str) -> None:
    windows = windows_until(planted(curves(run), step_out_of_line, at=AT[run]), "chunk_step", at=AT[run])
    assert windows == WITHIN


@pytest.mark.parametrize("run", ["quickstart-0", "seeing-1"])
def test_a_head_that_dies_is_found_within_three_windows(run: str) -> None:
    """It goes back to what it was at the beginning, while the tokens go on learning."""
    at, lines = 24, curves(run)
    untrained = next(line for line in lines if line.is_window).values["train_loss_ct"]

    def dead(since: int, values: dict[str, float]) -> None:
        values["train_loss_ct"] = untrained

    assert windows_until(planted(lines, dead, at=at), "one_head", at=at) in range(1, WITHIN + 1)


def test_a_head_that_never_learns_is_found_when_the_first_windows_are_over() -> None:
    lines = curves("seeing-1")
    untrained = next(line for line in lines if line.is_window).values["train_loss_ct"]

    def dead(since: int, values: dict[str, float]) -> None:
        values["train_loss_ct"] = untrained

    only = Thresholds().one_head
    assert only is not None
    assert windows_until(planted(lines, dead, at=0), "one_head", at=0) in range(only.windows, only.windows + WITHIN)


@pytest.mark.parametrize("run", ["quickstart-0", "seeing-1"])
def test_a_rising_validation_loss_is_found_within_three_evaluations(run: str) -> None:
    lines = curves(run)
    at = sum("val_ind_closs" in line.values for line in lines) // 2
    best = [line.values["val_ind_closs"] for line in lines if "val_ind_closs" in line.values][at - 1]

    def rising(since: int, values: dict[str, float]) -> None:
        values["val_ind_closs"] = best * (1.3 + 0.1 * since)

    lines = planted(lines, rising, at=at, of="val_ind_closs")
    assert windows_until(lines, "overfitting", at=at, of="val_ind_closs") in range(1, WITHIN + 1)


def test_half_the_throughput_is_found_within_three_windows() -> None:
    """Each window takes 20 s here; that of short windows must last for some seconds."""
    at, lines = AT["seeing-1"], [Line(line.step, 2000 * line.step, line.values) for line in curves("seeing-1")]
    assert windows_until(planted(lines, halved, at=at), "throughput", at=at) == WITHIN


def test_a_moment_of_half_the_throughput_is_not_told() -> None:
    def shortly(since: int, values: dict[str, float]) -> None:
        if since < 5:
            halved(since, values)

    assert findings(planted(curves("seeing-1"), shortly, at=AT["seeing-1"])) == []


def test_a_plateau_is_found_within_three_windows_of_its_least_length() -> None:
    at, length = 30, 60
    lines = curves("seeing-1")
    level = [line.values["train_loss"] for line in lines if line.is_window][-length * 2 :]

    def flat(since: int, values: dict[str, float]) -> None:
        middle = sum(level) / len(level)
        values["train_loss"] = middle * (1 + 0.02 * math.sin(since))
        values["train_lr"] = 1e-3

    lines = planted(lines, flat, at=at)
    monitor = Thresholds(plateau=Plateau(windows=length, improvement=0.05))
    steps = [line.step for line in lines if line.is_window]
    first = next(found for found in findings(lines, monitor) if found.detector == "plateau")
    assert abs(steps.index(first.step) + 1 - at - length) <= WITHIN


def test_an_error_at_the_quantisation_floor_is_told_and_is_no_fault() -> None:
    def at_floor(since: int, values: dict[str, float]) -> None:
        values["train_l1_loss_action"] = 1.05 * values["train_quantisation_floor"]

    lines = planted(curves("seeing-1"), at_floor, at=300)
    assert windows_until(lines, "quantisation_floor", at=300) == WITHIN
    told = next(found for found in findings(lines) if found.detector == "quantisation_floor")
    assert told.severity is Severity.INFO


def test_a_gpu_that_falls_idle_is_found_but_none_that_was_never_used() -> None:
    samples = [
        Line(10 * number, 15_000 * number, {"system/gpu_0_percent": load, "system/gpu_1_percent": 0.0})
        for number, load in enumerate([90, 95, 92, 90, 91, 2, 0, 1, 0, 0])
    ]
    (found,) = findings(samples)
    assert (found.detector, found.metric, found.step) == ("gpu_idle", "system/gpu_0_percent", 80)


def test_a_gpu_is_idle_without_a_finding_while_no_step_is_taken() -> None:
    loads = [90, 95, 92, 0, 0, 0, 0, 0, 0]
    samples = [Line(10 * min(n, 2), 15_000 * n, {"system/gpu_0_percent": load}) for n, load in enumerate(loads)]
    assert findings(samples) == []


def test_an_accuracy_that_collapses_is_a_spike_for_more_of_it_is_better() -> None:
    lines = planted(curves("seeing-1"), collapse, at=100)
    (found,) = [finding for finding in findings(lines) if finding.detector == "spike"]
    assert "acc_action" in found.metric
    assert "likewise" in found.message


def test_a_fault_that_stays_is_told_once_and_again_only_after_it_was_gone() -> None:
    def wait(since: int, values: dict[str, float]) -> None:
        if since < 50 or since >= 80:
            waiting(since, values)

    found = [f for f in findings(planted(curves("seeing-1"), wait, at=AT["seeing-1"])) if f.detector == "data_wait"]
    assert len(found) == 2

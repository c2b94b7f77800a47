"""What the speed figures count, and what they leave out."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic import Arithmetic
from tiny_policy import vla_row
from training_rank import make_policy

from vlatrack.metrics.states import MetricStates
from vlatrack.models.token_metrics import token_metric_states
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.throughput import PHASES, SPEEDS, Stopwatch, Throughput

LAYOUT = TokenLayout()


@pytest.fixture
def batch() -> Batch:
    """Two rows of 3 and 5 tokens: 10 positions with the padding."""
    rows = [np.arange(20, 20 + length, dtype=np.int64) for length in (3, 5)]
    return collate([TokenSequence(row, np.full_like(row, -100)) for row in rows], LAYOUT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test lets pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_padding_is_no_token(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))
    window.watch.enter("forward")
    window.count([batch])
    clock[0] += 2.0
    speeds = window.close()()
    assert (speeds["tokens_per_s"], speeds["samples_per_s"], speeds["step_time_s"]) == (4.0, 1.0, 2.0)


def test_an_evaluation_or_a_checkpoint_is_no_part_of_a_step(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))
    window.watch.enter("tracking")
    window.count([batch])
    clock[0] += 1.0
    with window.paused():
        clock[0] += 60.0
    clock[0] += 0.5
    assert window.close()()["tracking_s"] == 1.5


def test_timed_data_data_is_told_apart(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))

    def slow_steps():
        clock[0] += 3.0
        yield [batch]

    for batches in window.timed_data(slow_steps()):
        window.watch.enter("forward")
        clock[0] += 1.0
        window.count(batches)
    clock[0] += 50.0  # nothing is timed after the last step
    speeds = window.close()()
    assert (speeds["data_wait_s"], speeds["step_time_s"]) == (3.0, 4.0)


def test_the_phases_of_a_step_add_up_to_its_time(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))
    for _ in range(2):
        for seconds, phase in enumerate(PHASES):
            window.watch.enter(phase)
            clock[0] += seconds
        window.count([batch])
    speeds = window.close()()
    assert [speeds["data_wait_s"], *(speeds[f"{phase}_s"] for phase in PHASES[1:])] == list(range(7))
    assert speeds["step_time_s"] == sum(range(7))
    assert set(speeds) == set(SPEEDS) - {"mfu"}


def test_a_window_can_be_read_when_the_next_one_is_under_way(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))
    window.watch.enter("forward")
    window.count([batch])
    clock[0] += 2.0
    first = window.close()
    window.count([batch, batch])
    clock[0] += 1.0
    second = window.close()
    assert (first()["tokens_per_s"], second()["tokens_per_s"]) == (4.0, 16.0)


def test_the_share_of_padding_and_of_the_chip_are_those_of_the_window(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"), flops_of=lambda batch: 100.0 * batch.tokens, peak_flops=1000.0)
    window.watch.enter("forward")
    window.count([batch, batch])
    clock[0] += 4.0
    speeds = window.close()()
    assert speeds["padding_share"] == pytest.approx(0.2)
    assert speeds["mfu"] == pytest.approx(100 * 16 / 4 / 1000)


def test_a_long_window_keeps_few_marks(batch: Batch, clock: list[float]) -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(5000):
        watch.enter("forward")
        clock[0] += 0.25
    assert len(watch._marks) < 2000
    assert watch.split()()["forward"] == 1250.0


class FakeEvent:
    """A mark on a GPU, of which the test decides how far it has come."""

    reached, recorded = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.recorded += 1.0
        self.at = FakeEvent.recorded

    def query(self) -> bool:
        return FakeEvent.reached >= self.at

    def synchronize(self) -> None:
        FakeEvent.reached = max(FakeEvent.reached, self.at)

    def elapsed_time(self, end: "FakeEvent") -> float:
        return (end.at - self.at) * 1e3


def test_on_a_gpu_nothing_waits_until_the_window_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    window = Throughput(torch.device("cuda"))
    for _ in range(2000):
        window.watch.enter("forward")
        window.watch.enter("backward")
    read = window.close()
    assert FakeEvent.reached == 0.0
    last = FakeEvent.recorded
    window.watch.enter("forward")
    speeds = read()
    assert FakeEvent.reached == last
    assert (speeds["memory_mib"], speeds["forward_s"], speeds["backward_s"]) == (3.0, 2000.0, 2000.0)


def test_the_token_metrics_of_the_forward_pass_count_as_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []

    def noting(*inputs: Any) -> MetricStates:
        phases.append("token metrics")
        return token_metric_states(*inputs)

    monkeypatch.setattr("vlatrack.models.policy.token_metric_states", noting)
    policy = make_policy(set()).train()
    batches = [collate([vla_row(np.random.default_rng(rows), 4)], LAYOUT) for rows in range(2)]
    train_step(
        policy,
        adamw(policy.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8),
        batches,
        policy.loss_counts(batches[0]),
        accelerator=Arithmetic(bf16=False),
        group=ProcessGroup(),
        lr=1e-3,
        clip_grad=None,
        trains_head=True,
        enter=phases.append,
    )
    of_a_batch = ["forward", "metrics", "token metrics", "forward", "backward", "metrics"]
    assert phases == [*of_a_batch, *of_a_batch, "exchange", "optimiser", "metrics"]

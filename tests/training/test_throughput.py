"""What the speed figures count, and what they leave out."""

import time

import numpy as np
import pytest
import torch

from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence
from vlatrack.training import throughput
from vlatrack.training.throughput import Throughput

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
    window.count([batch])
    clock[0] += 2.0
    speeds = window.take()
    assert (speeds["tokens_per_s"], speeds["samples_per_s"], speeds["step_time_s"]) == (4.0, 1.0, 2.0)


def test_an_evaluation_or_a_checkpoint_is_no_part_of_a_step(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))
    window.count([batch])
    clock[0] += 1.0
    with window.paused():
        clock[0] += 60.0
    assert window.take()["step_time_s"] == 1.0


def test_timed_data_data_is_told_apart(batch: Batch, clock: list[float]) -> None:
    window = Throughput(torch.device("cpu"))

    def slow_steps():
        clock[0] += 3.0
        yield [batch]

    for batches in window.timed_data(slow_steps()):
        clock[0] += 1.0
        window.count(batches)
    speeds = window.take()
    assert (speeds["data_wait_s"], speeds["step_time_s"]) == (3.0, 4.0)


def test_a_window_ends_when_the_device_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    awaited = []
    monkeypatch.setattr(torch.cuda, "synchronize", awaited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    window = throughput.Throughput(torch.device("cuda"))
    assert window.take()["memory_mib"] == 3.0
    assert awaited == [torch.device("cuda")]

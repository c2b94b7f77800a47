"""What `vlatrack bench train` measures, and the floor that it compares with."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import torchrun
from program import TOY
from tiny_policy import LAYOUT, vla_row
from typer.testing import CliRunner

from vlatrack.bench.floor import step_floor
from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.cli.main import app
from vlatrack.errors import SpecError
from vlatrack.spec.load import load_spec
from vlatrack.tokens.batch import collate
from vlatrack.training.chips import Chip
from vlatrack.training.flops import PolicySizes, batch_flops


def test_steps_are_measured_without_data_and_all_figures_are_written(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    words = ["bench", "train", str(TOY), "train.batch_size=4", "--steps", "2", "--layers", "1"]
    done = CliRunner().invoke(app, [*words, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    written = json.loads(file.read_text())
    assert {"created", "command", "vlatrack", "commit", "packages", "hardware", "settings", "cost"} <= written.keys()
    assert {"torch", "python"} <= written["packages"].keys()
    assert written["settings"]["train.batch_size"] == 4
    cost = written["cost"]
    assert (cost["steps"], cost["layers"], cost["rows"], cost["device"], cost["processes"]) == (2, 1, 4, "CPU", 1)
    assert cost["tokens"] == 160
    speeds = cost["speeds"]
    parts = ("data_wait_s", "forward_s", "backward_s", "optimiser_s", "exchange_s", "metrics_s", "tracking_s")
    assert sum(speeds[part] for part in parts) == pytest.approx(speeds["step_time_s"])
    assert speeds["samples_per_s"] == pytest.approx(4 / speeds["step_time_s"])
    assert 0 <= speeds["padding_share"] < 1
    assert cost["flops"] > 0
    assert cost["memory"]["weights"] == cost["memory"]["gradients"] == 4 * cost["parameters"]
    assert cost["memory"]["optimizer_states"] >= 8 * cost["parameters"]
    assert "mfu" not in speeds  # nobody knows what this CPU could do
    assert cost["floor"] is cost["ratio_to_floor"] is cost["memory"]["peak"] is None
    for label in ("step time", "forward", "tokens", "MFU", "memory"):
        assert label in done.output


def test_what_deterministic_kernels_cost_is_measured_with_and_without_them(tmp_path: Path) -> None:
    file, words = tmp_path / "cost.json", ["train.batch_size=4", "train.deterministic=true", "--steps", "1"]
    done = CliRunner().invoke(app, ["bench", "train", str(TOY), *words, "--json", str(file)], catch_exceptions=False)
    assert not torch.are_deterministic_algorithms_enabled()
    cost = json.loads(file.read_text())["cost"]
    times = cost["speeds"]["step_time_s"] / cost["step_time_without_deterministic_s"]
    assert f"deterministic  {times:.2f} times the step time without" in done.output


@pytest.mark.parametrize("layers", ["3", "99"])
def test_more_layers_than_the_backbone_has_are_refused(tmp_path: Path, layers: str) -> None:
    words = ["bench", "train", str(TOY), "--layers", layers, "--json", str(tmp_path / "cost.json")]
    with pytest.raises(SpecError, match=rf"^--layers {layers}: the backbone has 2$"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_the_floor_is_arithmetic_and_traffic_shared_by_the_processes() -> None:
    spec = load_spec(TOY)
    sizes = PolicySizes.of(build_policy(spec, backbone_factory(spec).open()))
    batch = collate([vla_row(np.random.default_rng(0), 6)], LAYOUT)
    chip = Chip(flops=1e9, bytes_per_s=1e6, source="made up")

    def floor(processes: int = 1, **sizes_of_states: int):
        figures = {"copied": 0, "trained": 0, "states": 0, **sizes_of_states}
        return step_floor(sizes, batch, chip, processes=processes, half_precision=True, **figures)

    assert floor().arithmetic_s == batch_flops(sizes, batch) / 1e9
    moved = floor().memory_s
    assert moved > 3 * 2 * sizes.blocks.sides * batch.tokens / 1e6
    # An optimiser step of AdamW in fp32 moves 36 bytes a number: three gradients, the weight twice, two states twice.
    adamw = floor(trained=4000, states=8000).memory_s - moved
    assert adamw == pytest.approx(36 * 1000 / 1e6)
    assert floor(copied=4000).memory_s - moved == pytest.approx(6 * 1000 / 1e6)
    assert floor(processes=2).total_s == pytest.approx(floor().total_s / 2)


@pytest.mark.slow
def test_two_processes_measure_their_steps_together(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    words = ["-m", "vlatrack", "bench", "train", TOY, "train.batch_size=4", "--steps", "2", "--json", file]
    done = subprocess.run(torchrun(*words), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    cost = json.loads(file.read_text())["cost"]
    assert (cost["processes"], cost["rows"]) == (2, 4)
    assert cost["speeds"]["samples_per_s"] > 0
    assert cost["memory"]["weights"] < 4 * cost["parameters"]  # each process holds a part

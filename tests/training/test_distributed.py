"""A policy in several processes trains as in one, however it is sharded; real processes, on gloo."""

import json
from pathlib import Path

import pytest
import torch
from launching import carry_out

from vlatrack.errors import SpecError
from vlatrack.training.distributed import parallel_shape

SCRIPT = Path(__file__).with_name("training_rank.py")
Steps = list[tuple[float, float]]  # loss and gradient norm of each


def trained(folder: Path, processes: int | None, *ways: str) -> dict[str, Steps]:
    """What the steps of each way were."""
    file = folder / f"{processes}.json"
    carry_out(SCRIPT, file, *ways, processes=processes)
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    """One process, whose policy is not sharded."""
    ways = ("float64", "float32", "float64,frozen", "float64,lora", "float64,dora,none", "float64,partly")
    return trained(tmp_path_factory.mktemp("alone"), 1, *ways)


def furthest(measured: Steps, expected: Steps) -> tuple[float, float]:
    """The largest relative differences of losses and of gradient norms."""
    losses, norms = zip(*measured, strict=True)
    expected_losses, expected_norms = zip(*expected, strict=True)
    return _difference(losses, expected_losses), _difference(norms, expected_norms)


def _difference(measured: tuple[float, ...], expected: tuple[float, ...]) -> float:
    one, other = torch.tensor(measured, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    return float(((one - other).abs() / other.abs().clamp(min=1e-12)).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "shardings"),
    [
        (2, ["", "replicate=2", "none", "compiled", "none,compiled", "every_second,compiled,replicate=2"]),
        (3, ["", "replicate=3", "measured", "none,compiled"]),
        (4, ["shard=2", "replicate=2,all_matmuls"]),
    ],
)
def test_however_it_is_sharded_checkpointed_or_compiled_a_policy_trains_as_in_one_process(
    tmp_path: Path, alone: dict[str, Steps], processes: int, shardings: list[str]
) -> None:
    """With uneven rows, and with steps in which no rank, or not every rank, has actions."""
    ways = [",".join(filter(None, (dtype, sharding))) for dtype in ("float64", "float32") for sharding in shardings]
    for way, steps in trained(tmp_path, processes, *ways).items():
        dtype = way.partition(",")[0]
        loss, norm = furthest(steps, alone[dtype])
        closest = (3e-7, 1e-12) if dtype == "float64" else (1e-6, 1e-4)  # losses pass through float32
        assert (loss < closest[0], norm < closest[1]) == (True, True), (way, loss, norm)


@pytest.mark.slow
def test_adapters_and_what_is_not_frozen_train_as_in_one_process(tmp_path: Path, alone: dict[str, Steps]) -> None:
    ways = ["float64,lora", "float64,dora,none", "float64,partly", "float64,frozen"]
    for way, steps in trained(tmp_path, 2, *ways).items():
        loss, norm = furthest(steps, alone[way])
        assert (loss < 1e-6, norm < 1e-11) == (True, True), (way, loss, norm)


@pytest.mark.parametrize(
    ("processes", "given", "expected"),
    [
        (1, {}, (1, 1)),
        (8, {}, (2, 4)),
        (8, {"shard": 8}, (1, 8)),
        (8, {"replicate": 4}, (4, 2)),
        (8, {"shard": 2, "replicate": 4}, (4, 2)),
    ],
)
def test_a_policy_is_sharded_over_a_machine_and_replicated_by_the_others(
    processes: int, given: dict[str, int], expected: tuple[int, int]
) -> None:
    per_machine = min(4, processes)
    assert parallel_shape(processes, per_machine, **{"shard": None, "replicate": None, **given}) == expected


@pytest.mark.parametrize("given", [{"shard": 3}, {"replicate": 5}, {"shard": 2, "replicate": 1}, {"shard": 8}])
def test_a_shape_that_does_not_divide_the_processes_is_one_line(given: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=r"train.parallel: shard \d x replicate \d is not the 4 processes of this run"):
        parallel_shape(4, 4, **{"shard": None, "replicate": None, **given})

"""The optimisers on a policy in two processes; real processes, on gloo."""

import json
from pathlib import Path
from typing import Any

import pytest
from launching import carry_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).with_name("optimizer_rank.py")
CASES = ("stochastic", "kahan", "muon")
REPLICATED = ("stochastic,replicate=2",)


def outcomes(folder: Path, processes: int, *cases: str) -> dict[str, Any]:
    carry_out(SCRIPT, folder, *cases, processes=processes)
    return json.loads((folder / f"{processes}.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(tmp_path_factory.mktemp("alone"), 1, *CASES)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(tmp_path_factory.mktemp("both"), 2, *CASES, *REPLICATED)


# bf16 has eight bits, and what stochastic rounding draws depends on the shards; Muon's matrix products are in bf16.
TOLERANCES = {"stochastic": 0.01, "kahan": 0.01, "muon": 0.001}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_each_optimizer(alone: dict[str, Any], both: dict[str, Any], case: str) -> None:
    assert both[case]["losses"] == pytest.approx(alone[case]["losses"], rel=TOLERANCES[case])
    assert not both[case]["ranks hold the same"]  # each has its shards


@pytest.mark.parametrize("case", [*CASES, *REPLICATED])
def test_a_sharded_training_resumes_bitwise_with_each_optimizer_and_an_average(both: dict[str, Any], case: str) -> None:
    assert both[case]["resumed"]


def test_copies_of_a_policy_round_alike(both: dict[str, Any]) -> None:
    assert both["stochastic,replicate=2"]["ranks hold the same"]

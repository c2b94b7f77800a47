"""What ranks exchange, between two real processes."""

import json
from pathlib import Path

import pytest
from launching import carry_out

from vlatrack.errors import TrainingError
from vlatrack.training.process_group import ProcessGroup, combine_by_name
from vlatrack.training.torch_process_group import TorchProcessGroup


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks left what they got from one another."""
    folder = tmp_path_factory.mktemp("ranks")
    carry_out(Path(__file__).with_name("exchanging_rank.py"), folder)
    return folder


@pytest.fixture(scope="module")
def results(exchanged: Path) -> list[dict]:
    return [json.loads((exchanged / f"{number}.json").read_text()) for number in (0, 1)]


def test_values_are_combined_by_name_in_whatever_order_the_ranks_have_them(results) -> None:
    assert results[0]["combined"] == {"speed": 5.0, "wait": 6.0, "alone": 7.0, "memory": 3.0, "other": 11.0}
    assert results[1]["combined"] == results[0]["combined"]


def test_a_name_on_one_rank_only_keeps_that_ranks_value(results) -> None:
    assert results[0]["combined"]["alone"] == 7.0
    assert results[0]["combined"]["other"] == 11.0


def test_a_name_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="unheard_of"):
        combine_by_name([{"unheard_of": 1.0}], {})


def test_a_number_is_summed_on_the_devices_as_well(results) -> None:
    assert [result["on_device"] for result in results] == [3.0, 3.0]


def test_every_rank_has_the_weights_of_the_first(results) -> None:
    assert [result["weight"] for result in results] == [[1.0], [1.0]]


def test_sums_are_those_of_all_ranks(results) -> None:
    for result in results:
        assert result["total"] == [2.0, 1.0]
        assert result["states"] == {"closs": [5.0, 4.0], "head": [[[1.0], [1.0]], 3.0]}


def test_rows_are_dealt_out_and_a_rank_may_get_none(results) -> None:
    assert [result["share"] for result in results] == [[1, 3], [2]]
    assert [result["share_of_one"] for result in results] == [[1], []]
    assert [result["largest_share_of_three"] for result in results] == [2, 2]


def test_the_first_rank_goes_ahead_and_its_word_counts(results) -> None:
    assert results[1]["second_found_first"] == [True]
    assert [result["broadcast"] for result in results] == ["of 0", "of 0"]
    assert results[0]["gathered"] == [0, 1]


def test_a_rank_whose_partner_is_gone_notices_at_its_next_exchange(exchanged: Path, results) -> None:
    assert [result["gone"] for result in results] == [[], []]
    assert "contact with another process" in (exchanged / "lost.txt").read_text()


def test_a_process_alone_exchanges_nothing() -> None:
    group = ProcessGroup()
    assert group.is_main_process
    assert group.shard([1, 2]) == [1, 2]
    assert group.combine({"speed": 2.0}, {"speed": "sum"}) == {"speed": 2.0}
    assert group.all_gather(3) == [3]


def test_a_launcher_that_sets_half_of_the_environment_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match="MASTER_ADDR, MASTER_PORT is not set; start several processes with torchrun"
    ):
        TorchProcessGroup.join()

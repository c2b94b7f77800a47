import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlatrack.errors import DataError
from vlatrack.metrics.declarations import action_error_grids
from vlatrack.metrics.states import MetricStates
from vlatrack.reports.action_errors import (
    append_action_errors,
    drop_action_errors_from,
    read_last_errors,
)
from vlatrack.reports.error_heat_maps import draw_action_errors


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "action_errors.csv"


def _grids(scale: float, horizon: int = 3, dims: int = 2) -> dict[str, list[list[float]]]:
    return {
        route: [[scale * (factor + step + 0.1 * dim) for dim in range(dims)] for step in range(horizon)]
        for route, factor in (("token", 1), ("head", 2))
    }


def test_grids_are_the_means_of_both_routes() -> None:
    totals = torch.arange(6.0).view(3, 2)
    states = MetricStates.of({"l1_loss_action": (totals, 2), "loss_ct": (totals * 3, 2), "acc_action": (totals, 2)})
    expected = [[0, 0.5], [1, 1.5], [2, 2.5]]
    head = [[3 * error for error in errors] for errors in expected]
    assert action_error_grids(states) == {"token": expected, "head": head}
    assert action_error_grids(MetricStates()) == {}


def test_the_table_grows_epoch_by_epoch_under_one_header(table: Path) -> None:
    append_action_errors(table, "train", 0, {"head": [[0.25], [0.5]]})
    append_action_errors(table, "val_ind", 0, {"token": [[math.nan]]})
    assert table.read_text().splitlines() == [
        "split,epoch,route,step,X,dimension,l1",
        "train,0,head,0,8,0,0.25",
        "train,0,head,1,9,0,0.5",
        "val_ind,0,token,0,9,0,nan",
    ]


def test_a_resumed_run_cuts_what_it_writes_again(table: Path) -> None:
    for epoch in range(2):
        append_action_errors(table, "train", epoch, _grids(epoch + 1))
    before = table.read_text()
    append_action_errors(table, "train", 2, _grids(3))
    with table.open("a") as stream:
        stream.write("val_ind,2,hea")  # torn by a kill
    drop_action_errors_from(table, 2)
    assert table.read_text() == before
    assert list(table.parent.iterdir()) == [table]
    drop_action_errors_from(table, 0)
    append_action_errors(table, "train", 0, _grids(1))
    assert before.startswith(table.read_text())


@pytest.mark.parametrize("torn", ["", "split,epo"])
def test_a_table_that_was_torn_in_its_header_begins_anew(table: Path, torn: str) -> None:
    table.write_text(torn)
    drop_action_errors_from(table, 3)
    append_action_errors(table, "train", 0, {"head": [[0.25]]})
    assert table.read_text() == "split,epoch,route,step,X,dimension,l1\ntrain,0,head,0,9,0,0.25\n"
    drop_action_errors_from(table.with_name("missing.csv"), 0)


def test_the_last_epoch_of_each_split_is_read_back(table: Path) -> None:
    for epoch in range(3):
        append_action_errors(table, "train", epoch, _grids(epoch + 1))
    append_action_errors(table, "val_ood", 1, {"head": [[math.nan, math.inf]]})
    last = read_last_errors(table)
    assert last["train", "token"] == (2, _grids(3)["token"])
    assert last["train", "head"] == (2, _grids(3)["head"])
    epoch, ((nan, inf),) = last["val_ood", "head"]
    assert (epoch, inf) == (1, math.inf)
    assert math.isnan(nan)


@pytest.mark.parametrize(("horizon", "dims"), [(1, 1), (5, 7), (20, 14)])
def test_the_heat_map_is_drawn_at_any_size_and_with_values_that_are_not_finite(
    table: Path, tmp_path: Path, horizon: int, dims: int
) -> None:
    for split in ("train", "val_ind", "val_ood"):
        append_action_errors(table, split, 0, _grids(0.01, horizon, dims))
    append_action_errors(table, "val_ood", 1, {"token": [[math.nan] * dims] * horizon})
    output = tmp_path / "action_errors.png"
    assert draw_action_errors(table, output, run_name="toy / run-1")
    with Image.open(output) as image:
        assert image.width > 900
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_a_table_without_rows_draws_nothing(table: Path, tmp_path: Path) -> None:
    append_action_errors(table, "train", 0, {})
    assert not draw_action_errors(table, tmp_path / "none.png", run_name="toy")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", r"\.csv:1: not a table with the columns split, epoch, route.*; restore that line"),
        ("{header}train,0,head,0,9,0,much\n", r"\.csv:2: not a row with the columns split, epoch.*; remove the line"),
        ("{header}train,0,head,0,9,0,0.5\ngarbage\n", r"\.csv:3: not a row"),
        ("{header}train,0,head,0,9,0,0.5\n\n", r"\.csv:3: not a row"),
        ("{header}train,0,head,0,9\x850,0.5\n", r"\.csv:2: not a row"),
    ],
)
def test_a_damaged_table_is_one_line_with_its_place_and_stays_as_it_is(table: Path, text: str, told: str) -> None:
    table.write_text(text.format(header="split,epoch,route,step,X,dimension,l1\n"), encoding="utf-8")
    before = table.read_bytes()
    with pytest.raises(DataError, match=told):
        read_last_errors(table)
    with pytest.raises(DataError, match=told):
        drop_action_errors_from(table, 0)
    assert table.read_bytes() == before


def test_a_table_that_cannot_be_read_or_written_is_one_line(table: Path) -> None:
    with pytest.raises(DataError, match=r"action_errors\.csv: cannot be read \(No such file.*restore the file"):
        read_last_errors(table)
    table.write_bytes(b"split\xff\n")
    with pytest.raises(DataError, match=r"action_errors\.csv: is not UTF-8 text; restore the file"):
        drop_action_errors_from(table, 0)
    table.unlink()
    table.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"action_errors\.csv: cannot be written \(No space left.*; free space"):
        append_action_errors(table, "train", 0, _grids(1))


def test_a_torn_last_row_is_no_value_of_the_heat_map(table: Path) -> None:
    append_action_errors(table, "train", 0, {"head": [[0.25], [0.5]]})
    table.write_text(table.read_text()[:-2])  # `0.` of 0.5
    assert read_last_errors(table) == {("train", "head"): (0, [[0.25]])}

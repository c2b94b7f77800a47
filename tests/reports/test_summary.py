"""The documented log files are read as they are written, and summed up from first to last epoch."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from vlatrack.errors import DataError
from vlatrack.metrics.schema import SPLITS
from vlatrack.reports.epoch_log import EpochLog, read_epoch_logs
from vlatrack.reports.summary import SummaryRow, first_last_table, render_summary


def write_lines(path: Path, *lines: dict[str, float]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def show(rows: list[SummaryRow], width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render_summary(rows, width=width))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_lines(
        tmp_path / "log_train.txt",
        {
            "train_closs": 4.0,
            "train_loss_ct": 0.4,
            "train_l1_loss_action_8": 0.9,
            "train_l1_loss_action_9": 1.0,
            "epoch": 0,
        },
        {
            "train_closs": 3.0,
            "train_loss_ct": 0.3,
            "train_l1_loss_action_8": 0.5,
            "train_l1_loss_action_9": 0.6,
            "epoch": 1,
        },
        {
            "train_closs": 1.0,
            "train_loss_ct": 0.1,
            "train_l1_loss_action_8": 0.3,
            "train_l1_loss_action_9": 1.5,
            "epoch": 2,
        },
    )
    write_lines(tmp_path / "log_eval_ind.txt", {"val_closs": 5.0, "epoch": 0}, {"val_closs": 2.0, "epoch": 2})
    return tmp_path


def test_each_metric_of_each_split_has_its_first_and_last_epoch(run_dir: Path) -> None:
    rows = first_last_table(read_epoch_logs(run_dir), horizon=2)
    assert rows == [
        SummaryRow("closs", None, "train", 0, 2, 4.0, 1.0),
        SummaryRow("closs", None, "val_ind", 0, 2, 5.0, 2.0),
        SummaryRow("loss_ct", None, "train", 0, 2, 0.4, 0.1),
        SummaryRow("l1_loss_action_8", 0, "train", 0, 2, 0.9, 0.3),
        SummaryRow("l1_loss_action_9", 1, "train", 0, 2, 1.0, 1.5),
    ]
    assert [row.change_percent for row in rows] == pytest.approx([-75, -60, -75, -200 / 3, 50])


@pytest.mark.parametrize(("horizon", "slots"), [(1, [9]), (5, range(5, 10)), (10, range(10)), (20, range(20))])
def test_the_steps_of_a_chunk_stand_under_their_documented_index(horizon: int, slots: list[int]) -> None:
    log = EpochLog("train", (0,), ({f"l1_loss_action_{slot}": 0.5 for slot in range(20)},))
    rows = first_last_table([log], horizon=horizon)
    assert [(row.metric, row.step) for row in rows] == [(f"l1_loss_action_{x}", i) for i, x in enumerate(slots)]


def test_a_change_that_is_no_number_is_left_out() -> None:
    assert SummaryRow("z_loss", None, "train", 0, 1, 0.0, 1.0).change_percent is None
    assert SummaryRow("closs", None, "train", 0, 1, math.nan, 1.0).change_percent is None
    assert SummaryRow("closs", None, "train", 0, 1, 1.0, math.inf).change_percent is None


def test_the_table_shows_first_and_last_value_step_and_change(run_dir: Path) -> None:
    write_lines(run_dir / "log_eval_ood.txt", {"val_closs": 0.00123, "epoch": 0}, {"val_closs": math.nan, "epoch": 2})
    lines = show(first_last_table(read_epoch_logs(run_dir), horizon=2))
    assert [line.split() for line in lines] == [
        ["epoch", "1", "→", "epoch", "3"],
        ["metric", "(step)", "train", "val_ind", "val_ood"],
        "closs 4.000 → 1.000 -75% 5.000 → 2.000 -60% 0.00123 → nan".split(),
        "loss_ct 0.400 → 0.100 -75% - -".split(),
        "l1_loss_action_8 (0) 0.900 → 0.300 -67% - -".split(),
        "l1_loss_action_9 (1) 1.000 → 1.500 +50% - -".split(),
    ]


@pytest.mark.parametrize("horizon", [1, 5, 10, 20])
def test_a_table_of_three_splits_keeps_each_metric_on_one_line(horizon: int) -> None:
    names = ["closs", "loss_ct", "z_loss", "loss", *(f"l1_loss_action_{x}" for x in range(20))]
    values = tuple(dict.fromkeys(names, value) for value in (39.9, 0.12))
    lines = show(first_last_table([EpochLog(split, (0, 9), values) for split in SPLITS], horizon=horizon))
    assert len(lines) == 2 + 4 + horizon
    assert lines[-1].endswith(" 39.90 → 0.120 -100%" * 3)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("width", "together"), [(120, [3]), (80, [3]), (79, [2, 1]), (60, [2, 1]), (40, [1, 1, 1])])
def test_splits_that_do_not_fit_side_by_side_stand_below(width: int, together: list[int]) -> None:
    values = ({"closs": 39.9, "l1_loss_action_9": 0.5}, {"closs": 0.12, "l1_loss_action_9": 0.25})
    lines = show(first_last_table([EpochLog(split, (0, 9), values) for split in SPLITS], horizon=5), width)
    assert max(map(len, lines)) <= width
    headings = [line.split()[2:] for line in lines if line.startswith("metric (step)")]
    assert [len(names) for names in headings] == together
    assert [name for names in headings for name in names] == list(SPLITS)
    assert "".join(lines).count("39.90 → 0.120 -100%") == 3
    assert "".join(lines).count("0.500 → 0.250 -50%") == 3


def test_a_run_that_logged_nothing_has_a_table_that_says_so(tmp_path: Path) -> None:
    assert read_epoch_logs(tmp_path) == []
    assert [line.strip() for line in show([])] == ["nothing was logged yet"]


def test_an_epoch_that_was_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    first, repeated = {"train_closs": 2.0, "epoch": 1}, {"train_closs": 1.5, "epoch": 1}
    write_lines(tmp_path / "log_train.txt", {"train_closs": 3.0, "epoch": 0}, first, repeated)
    (log,) = read_epoch_logs(tmp_path)
    assert log == EpochLog("train", (0, 1), ({"closs": 3.0}, {"closs": 1.5}))


def test_lines_without_an_epoch_count_by_their_number(tmp_path: Path) -> None:
    write_lines(tmp_path / "log_eval_ood.txt", {"val_closs": 3.0}, {"val_closs": 2.0})
    (log,) = read_epoch_logs(tmp_path)
    assert log == EpochLog("val_ood", (0, 1), ({"closs": 3.0}, {"closs": 2.0}))


@pytest.mark.parametrize("line", ['{"train_closs": 1', "[1]", '{"train_closs": "low"}', ""])
def test_a_damaged_line_is_named(run_dir: Path, line: str) -> None:
    path = run_dir / "log_train.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError) as error:
        read_epoch_logs(run_dir)
    assert str(error.value) == f"{path}:4: not a JSON object of numbers; remove the line"

"""Figures and tables of an open-loop evaluation, at any size and with values that are not finite."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlatrack.reports.action_errors import action_error_table
from vlatrack.reports.frames import ShownFrames, draw_frames
from vlatrack.reports.tasks import COLUMNS, MOST_SHOWN, draw_tasks, task_table
from vlatrack.reports.trajectories import draw_trajectories

COLOURS = {"head": (0x00, 0x72, 0xB2), "tokens": (0xD5, 0x5E, 0x00)}


@dataclass(frozen=True)
class Shown:
    episode: int
    task: str
    starts: tuple[int, ...]
    recorded: np.ndarray
    head: np.ndarray
    tokens: np.ndarray


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_both_routes_are_drawn_beside_what_was_recorded(tmp_path: Path) -> None:
    steps = np.arange(20.0)[:, None] * [1, -1]
    shown = Shown(7, "push " * 40, (0, 10), steps, steps + 3, steps - 3)
    for name, trajectory in {
        "both": shown,
        "lost": Shown(7, "push", (0, 10), steps, np.full_like(steps, math.nan), steps),
    }.items():
        draw_trajectories([trajectory], ["dx", "dy"], tmp_path / f"{name}.png", title="a run")
    seen = {
        name: [bool((pixels(tmp_path / f"{name}.png") == colour).all(-1).sum() > 300) for colour in COLOURS.values()]
        for name in ("both", "lost")
    }
    assert seen == {"both": [True, True], "lost": [False, True]}


def test_the_table_has_a_row_for_each_task_and_keeps_commas() -> None:
    tasks = {"val_ind": {"lift, then push": {"samples": 3.0, "loss_ct": 0.5}, "push": {"samples": 1.0}}}
    rows = list(csv.DictReader(task_table(tasks).splitlines()))
    assert [(row["split"], row["task"], row["loss_ct"]) for row in rows] == [
        ("val_ind", "lift, then push", "0.5"),
        ("val_ind", "push", ""),
    ]
    assert list(rows[0]) == ["split", "task", *COLUMNS]


@pytest.mark.parametrize("count", [1, MOST_SHOWN + 30])
def test_tasks_are_drawn_however_many_there_are(tmp_path: Path, count: int) -> None:
    """LIBERO-90 has ninety; the figure stays readable by showing the worst."""
    of_split = {f"task {n}": {"samples": 2.0, "loss_ct": n / 100, "l1_loss_action": math.nan} for n in range(count)}
    assert draw_tasks({"val_ind": of_split, "val_ood": {}}, tmp_path / "tasks.png", title="a run")
    height, width, _ = pixels(tmp_path / "tasks.png").shape
    assert width == 1080
    assert height < 2400


def test_without_errors_no_tasks_are_drawn(tmp_path: Path) -> None:
    assert not draw_tasks({"val_ind": {"push": {"samples": 1.0}}}, tmp_path / "tasks.png", title="a run")
    assert not list(tmp_path.iterdir())


def test_images_stand_side_by_side_without_columns_in_which_there_is_none(tmp_path: Path) -> None:
    red, green, blue = (np.full((32, 32, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
    rows = {
        "all": ShownFrames("episode 1", red, green, blue, blue, green),
        "lost": ShownFrames("episode 2", red, green, None, blue, green),
        "not generated": ShownFrames("episode 3", red, green, blue, None, green),
    }
    for name, row in rows.items():
        draw_frames([row], tmp_path / f"{name}.png", title="a run")
        image = pixels(tmp_path / f"{name}.png")
        for colour, columns in (((0, 0, 250), 2 if name == "all" else 1), ((0, 250, 0), 2)):
            found = (image == colour).all(-1).any(axis=0)
            assert (np.diff(found.astype(int)) == 1).sum() == columns, name


def test_the_table_of_errors_has_each_cell() -> None:
    table = action_error_table({"val_ind": {"free": [[0.5, math.nan]], "head": [[0.25, 0.75]]}})
    assert table.splitlines() == [
        "split,route,step,X,dimension,l1",
        "val_ind,free,0,9,0,0.5",
        "val_ind,free,0,9,1,nan",
        "val_ind,head,0,9,0,0.25",
        "val_ind,head,0,9,1,0.75",
    ]

"""Figures show every metric that was logged, for any horizon, and never half of one."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlatrack.health.finding import Finding, Severity
from vlatrack.metrics.schema import SPLITS, Direction, MetricSchema
from vlatrack.reports.charts import ChartBook
from vlatrack.reports.figures import History, draw_figures, write_figures
from vlatrack.reports.panels import Panel, save_panels
from vlatrack.tracking.journal.journal import Journal


def history_of(horizon: int, *, action_dim: int = 2, steps: int = 3) -> dict[str, list[tuple[int, float]]]:
    names = MetricSchema.for_experiment(horizon=horizon, action_dim=action_dim).names()
    return {name: [(10 * i, 1.0 / (1 + i)) for i in range(1, steps + 1)] for name in names if name != "epoch"}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def has_color(path: Path, color: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels(path) - color).sum(axis=2) < 12).sum() > 30)


def titles_of(monkeypatch: pytest.MonkeyPatch, history: History, output: Path) -> dict[str, list[str]]:
    """Return the panel titles of each figure that is drawn from `history`."""
    drawn: dict[str, list[str]] = {}

    def note(panels: list[Panel], path: Path, **_: object) -> None:
        drawn[path.stem] = [panel.title for panel in panels]

    monkeypatch.setattr("vlatrack.reports.figures.save_panels", note)
    draw_figures(history, output=output, run_name="run")
    return drawn


@pytest.mark.parametrize("horizon", [1, 5, 8, 10, 20])
def test_every_step_of_a_chunk_has_a_panel_with_x_and_plain_step(
    horizon: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = titles_of(monkeypatch, history_of(horizon), tmp_path)
    first = max(10, horizon) - horizon
    steps = [f"step {i}  (X = {first + i})" for i in range(horizon)]
    mean = ["mean over the steps"] if horizon > 1 else []
    assert drawn["action_l1"] == mean + steps
    assert drawn["head_l1"] == steps
    assert drawn["accuracy"] == [*mean, *steps, *(f"acc_image_{slot}" for slot in range(10)), "acc_image_codes"]
    assert drawn["losses"] == ["closs", "loss_ct", "z_loss", "loss"]
    assert drawn["action_dimensions"] == drawn["head_dimensions"] == ["dimension 0", "dimension 1"]
    assert drawn["optimisation"][:2] == ["grad_norm", "lr"]
    assert "memory_mib" in drawn["optimisation"]


def test_success_in_simulators_has_a_panel_each_with_its_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    history: dict[str, list[tuple[int, float]]] = {}
    for group, rate in (("arena", 0.5), ("arena-blind", 0.25)):
        for measure, value in (("success", rate), ("success_low", rate - 0.2), ("success_high", rate + 0.2)):
            history[f"sim/{group}/{measure}"] = [(10, value), (20, value + 0.1)]
            history[f"sim/{group}/push/{measure}"] = [(10, value)]
        history[f"sim/{group}/episodes"] = [(10, 8.0), (20, 8.0)]
    draw_figures(history, output=tmp_path, run_name="run")
    assert [path.name for path in tmp_path.iterdir()] == ["success.png"]
    assert has_color(tmp_path / "success.png", (0x00, 0x9E, 0x73))
    assert titles_of(monkeypatch, history, tmp_path) == {"success": ["arena", "arena-blind"]}


def test_loss_terms_of_ones_own_and_gradient_shares_have_a_panel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = ("smoothness", "weighted_smoothness", "gradient_share_smoothness")
    drawn = titles_of(monkeypatch, history_of(5) | {f"train_{name}": [(1, 0.5)] for name in own}, tmp_path)
    assert drawn["losses"] == ["closs", "loss_ct", "z_loss", "smoothness", "loss"]
    assert "gradient_share_smoothness" in drawn["optimisation"]


def test_no_metric_stands_in_two_groups_of_a_page() -> None:
    shown = [
        name
        for group in ChartBook([*history_of(5), "system/cpu_percent", "mine"]).page()
        for chart in group.charts
        for name in chart.lines.values()
    ]
    assert len(shown) == len(set(shown))
    assert {"train_weighted_loss_ct", "val_ind_weighted_loss_ct", "system/cpu_percent", "mine"} <= set(shown)


def test_figures_of_a_journal_are_images_with_a_line_for_each_split(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo" / "run-1"
    run_dir.mkdir(parents=True)
    history = history_of(5)
    journal = Journal.open(run_dir / "journal.jsonl", run="run-1", writer="test")
    for position, (step, _) in enumerate(history["train_closs"]):
        journal.append("metrics", {name: points[position][1] for name, points in history.items()}, step=step)
    journal.close()
    written = write_figures(run_dir, output=run_dir / "report")
    stems = ["losses", "action_l1", "head_l1", "accuracy", "action_dimensions", "head_dimensions", "optimisation"]
    assert [path.name for path in written] == [f"{stem}.png" for stem in stems]
    assert sorted(path.name for path in (run_dir / "report").iterdir()) == sorted(path.name for path in written)
    assert pixels(written[0]).shape[1] == 1200
    assert has_color(written[0], (0, 0x72, 0xB2))
    assert has_color(written[0], (0xD5, 0x5E, 0))


def test_a_run_with_one_point_and_one_split_is_drawn(tmp_path: Path) -> None:
    (written,) = draw_figures({"val_ind_closs": [(7, 2.5)]}, output=tmp_path, run_name="run")
    assert written.name == "losses.png"
    assert has_color(written, (0, 0x72, 0xB2))
    assert not has_color(written, (0xD5, 0x5E, 0))


def test_a_run_that_logged_nothing_has_no_figures(tmp_path: Path) -> None:
    assert draw_figures({"train_closs": []}, output=tmp_path, run_name="run") == []
    assert list(tmp_path.iterdir()) == []


FLOAT_MAX = sys.float_info.max


@pytest.mark.parametrize(
    "values",
    [
        [math.nan, math.inf],
        [1.0, math.nan, 2.0],
        [0.0, 0.0],
        [-1.0, 1e6],
        [1e-9, 1e9],
        [5e-324, 3e38],
        [FLOAT_MAX, 1.0, -FLOAT_MAX],
        [FLOAT_MAX],
    ],
)
@pytest.mark.parametrize("name", ["closs", "l1_loss_action_5", "samples_per_s"])
def test_values_that_are_not_finite_zero_negative_or_far_apart_are_drawn(
    name: str, values: list[float], tmp_path: Path
) -> None:
    history = {f"{split}_{name}": list(enumerate(values)) for split in SPLITS}
    history |= {"train_quantisation_floor": [(0, values[-1])]}
    (written,) = draw_figures(history, output=tmp_path, run_name="run")
    red = has_color(written, (0xB0, 0, 0x20))
    assert red == any(abs(value) > 1e100 or math.isnan(value) for value in values)


def test_a_cross_stands_at_the_step_of_a_value_that_is_not_finite(tmp_path: Path) -> None:
    """At the bottom, left for an early step and right for a late one."""
    places = []
    for broken in (1, 8):
        points = [(step, math.nan if step == broken else 1.0 + step) for step in range(10)]
        (written,) = draw_figures({"val_ind_closs": points}, output=tmp_path / str(broken), run_name="run")
        red = np.abs(pixels(written) - (0xB0, 0, 0x20)).sum(axis=2) < 40
        rows, columns = np.nonzero(red)
        cross = columns[rows > 0.6 * len(red)]
        places.append(cross.mean() / red.shape[1])
        assert len(cross) > 10
    assert 0.1 < places[0] < 0.3 < 0.7 < places[1] < 0.95


def test_a_figure_replaces_the_one_before_and_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"old")
    panel = Panel("closs", "nats", Direction.LOWER, {"train": [(1, 2.0), (2, 1.0)]})
    contents = []
    for _ in range(2):
        save_panels([panel], path, title="run")
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finding_of_the_detectors_is_marked_in_the_panels_of_its_metric_and_of_the_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finding = Finding("spike", Severity.WARNING, "train_loss_ct", 20, 3.0, "it jumped", "a lower optim.lr")
    (tmp_path / "run").mkdir()
    journal = Journal.open(tmp_path / "run" / "journal.jsonl", run="r", writer="trainer")
    for step in (10, 20, 30):
        journal.append("metrics", {"train_closs": 1.0, "train_loss_ct": 1.0, "train_loss": 2.0}, step=step)
    journal.append("event", {"name": "health", "data": finding.data(), "alert": True})
    journal.close()
    marks: dict[str, list[int]] = {}
    whole = save_panels

    def note(panels: list[Panel], path: Path, **given: Any) -> None:
        marks.update({panel.title: list(panel.marks) for panel in panels})
        whole(panels, path, **given)

    monkeypatch.setattr("vlatrack.reports.figures.save_panels", note)
    (path,) = write_figures(tmp_path / "run", output=tmp_path / "report")
    assert marks == {"closs": [], "loss_ct": [20], "loss": [20]}
    assert has_color(path, (0xB0, 0x00, 0x20))

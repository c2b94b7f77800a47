import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack import start_run
from vlatrack.cli.main import app
from vlatrack.errors import DataError, TrackerError
from vlatrack.reports.action_references import ActionReferences
from vlatrack.reports.figures import write_figures
from vlatrack.reports.html_report import MOST_BYTES, write_report
from vlatrack.reports.panels import Panel
from vlatrack.reports.tables import results_latex

HOSTILE = "</script><script>alert(1)</script><!--"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    params = {"optim.clip_grad": 1.0, "train.checkpoint.best_metric": "val_ind_loss_ct", HOSTILE: HOSTILE}
    with start_run("toy", name=HOSTILE, runs=tmp_path, backends=[], params=params) as run:
        for step in range(1, 31):
            values = {f"train_{name}": 3 / step for name in ("closs", "loss_ct", "loss", "l1_loss_action_9")}
            odd = {"train_l1_loss_dim_1": 0.5, f"train_l1_loss_action_{HOSTILE}": 1.0}
            run.log({**values, **odd, "train_grad_norm": 2.0, "epoch": step / 10}, step=step)
            if step % 10 == 0:
                run.log({"val_ind_loss_ct": abs(step - 20) + 1.0, "val_ind_closs": 4 / step}, step=step)
        (run.path / "evaluation").mkdir()
        ActionReferences(("dx", HOSTILE), {"val_ind": {"repeat": [[0.25, 0.5]]}}).write(run.path / "evaluation")
        return run.path


def content_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_a_report_is_one_file_that_asks_nobody_for_anything(run_dir: Path, tmp_path: Path) -> None:
    page = write_report(run_dir, tmp_path / "report.html").read_text()
    assert HOSTILE not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    content = content_of(page)
    best = content["best"]
    assert isinstance(best, dict)
    assert [best[key] for key in ("metric", "step", "value", "epoch")] == ["val_ind_loss_ct", 20, 1.0, 2]
    assert content["references"]["baselines"]["loss_ct"] == {"val_ind": {"repeat": 0.375}}
    assert content["references"]["names"] == ["dx", HOSTILE]


def test_a_long_run_still_has_a_small_report(tmp_path: Path) -> None:
    with start_run("toy", runs=tmp_path, backends=[]) as run:
        for step in range(3000):
            run.log({f"train_metric_{number}": step * 1.2345678 + number for number in range(60)}, step=step)
    report = write_report(run.path, tmp_path / "report.html")
    assert report.stat().st_size <= MOST_BYTES
    lines = content_of(report.read_text())["lines"]["lines"]
    assert len(lines) == 60
    assert all(len(line["values"]) > 100 for line in lines.values())


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_tables_hold_first_last_and_best_with_their_steps(run_dir: Path, tmp_path: Path) -> None:
    call("report", run_dir, "--tables", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "results.tex"]
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    loss = rows["val_ind_loss_ct"]
    assert [loss[name] for name in ("first", "first_step", "last", "last_step", "best", "best_step")] == [
        *("11.0", "10"),
        *("11.0", "30"),
        *("1.0", "20"),
    ]
    assert rows["train_l1_loss_action_9"]["chunk_step"] == "0"
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert r"loss\_ct & 0.1 & 0.1 & 11 & 1 \\" in latex
    assert latex.count("{") == latex.count("}")


def test_latex_of_odd_names_is_escaped() -> None:
    cell = {"first": {"step": 1, "value": 1.0}, "last": {"step": 1, "value": 1.0}}
    told = results_latex(
        [{"metric": r"a_b%\x", "step": None, "unit": "", "splits": {"train": cell}}], caption="50 % & {x}"
    )
    assert r"a\_b\%\textbackslash{}x & 1 & -- \\" in told
    assert r"\caption{50 \% \& \{x\}}" in told


@pytest.mark.parametrize(("kind", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_figures_for_a_paper_are_the_same_bytes_each_time(
    run_dir: Path, tmp_path: Path, kind: str, begins: bytes
) -> None:
    call("report", run_dir, "--figures", kind, "--output", tmp_path / "one")
    call("report", run_dir, "--figures", kind, "--output", tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert f"losses.{kind}" in names
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content.startswith(begins)
        assert content == (tmp_path / "two" / name).read_bytes()


@pytest.fixture
def other_run(tmp_path: Path) -> Path:
    with start_run("other", name="$x_{1}$", runs=tmp_path, backends=[], params={"optim.clip_grad": 2.0}) as run:
        for step in range(1, 6):
            run.log({"train_closs": 1 / step, "val_ood_loss": 2.0}, step=step)
        return run.path


def test_several_runs_are_compared_in_one_file_with_figures_and_tables(
    run_dir: Path, other_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other_run = other_run.parent.rename(tmp_path / "=other") / other_run.name  # to a spreadsheet a formula
    call("report", run_dir, other_run, "--html", "--pdf", "--figures", "png", "--tables", "--output", out)
    names = {path.name for path in out.iterdir()}
    assert {f"comparison.{kind}" for kind in ("html", "pdf", "csv", "tex")} < names
    assert {"losses.png", "optimisation.png"} < names
    page = (out / "comparison.html").read_text()
    assert HOSTILE not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    content = content_of(page)
    assert isinstance(content["differences"], list)
    clip = {one["path"]: one["values"] for one in content["differences"]}["optim.clip_grad"]
    assert clip == [1.0, 2.0]
    with (out / "comparison.csv").open() as file:
        best = {(row["metric"], row["run"].partition("/")[0]): row["best"] for row in csv.DictReader(file)}
    assert best["train_closs", "'=other"] == "0.2"
    assert ("val_ood_loss", "toy") not in best
    assert r"train\_closs & 0.1 & 0.2 \\" in (out / "comparison.tex").read_text()
    call("report", run_dir, other_run, "--each", "--pdf", "--output", out)
    for run in (run_dir, other_run):
        assert (out / run.name / "report.pdf").read_bytes().startswith(b"%PDF")


def test_figures_have_the_baselines_the_clip_line_and_the_best_checkpoint(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    panels: dict[str, Panel] = {}
    monkeypatch.setattr(
        "vlatrack.reports.figures.save_panels",
        lambda drawn, path, **_: panels.update({panel.title: panel for panel in drawn}),
    )
    write_figures(run_dir, output=tmp_path / "figures")
    assert panels["loss_ct"].references == {"last action repeated": 0.375}
    assert panels["grad_norm"].references == {"gradients are clipped above": 1.0}
    assert panels["closs"].references == {}
    assert {panel.best_step for panel in panels.values()} == {20}
    assert HOSTILE in panels  # the name of a dimension
    monkeypatch.undo()
    svg = next(path for path in write_figures(run_dir, output=tmp_path / "svg", kind="svg") if path.stem == "losses")
    assert svg.read_text().count("<!-- last action repeated -->") == 1


def test_bad_input_is_one_line(run_dir: Path, tmp_path: Path, eventually: Callable[..., None]) -> None:
    with pytest.raises(TrackerError, match="no run directory"):
        call("report", tmp_path)
    with pytest.raises(TrackerError, match="21 runs: at most 20"):
        call("report", *[run_dir] * 21)
    (tmp_path / "file").touch()
    with pytest.raises(TrackerError, match=r"file.*; choose another --output"):
        call("report", run_dir, "--output", tmp_path / "file")
    (run_dir / "evaluation" / "baselines.json").write_text(
        '{"action_names": [], "baselines": {"train": {"a": [[1], [1, 2]]}}}'
    )
    with pytest.raises(DataError, match="damaged"):
        ActionReferences.read(run_dir / "evaluation")
    assert "damaged" in str(content_of(write_report(run_dir, tmp_path / "r.html").read_text())["references"])

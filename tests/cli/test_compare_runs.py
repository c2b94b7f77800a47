"""`vlatrack compare` of runs: what differs is named, seeds are grouped, and a gate sets the exit code."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import ENVIRONMENT
from typer.testing import CliRunner

import vlatrack
from vlatrack.cli.main import app
from vlatrack.errors import VlatrackError
from vlatrack.runner.comparison.comparison import RunComparison, compare_runs
from vlatrack.runner.comparison.metrics import metric_rows
from vlatrack.runner.comparison.page import comparison_page
from vlatrack.runner.comparison.recorded import RecordedRun
from vlatrack.tracking.journal import history as history_module

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def made(folder: Path, values: Mapping[str, list[float]], name: str = "exp", **params: Any) -> Path:
    with vlatrack.start_run(name, runs=folder, backends=[], params=params) as run:
        for step in range(max(map(len, values.values()))):
            run.log({metric: series[step] for metric, series in values.items() if step < len(series)}, step=step + 1)
        return Path(run.path)


def compare(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False, env={"COLUMNS": "200"})
    return done.exit_code, done.output


def of_seeds(folder: Path, losses: Mapping[int, float], weight: float = 1.0) -> list[Path]:
    return [
        made(folder, {"val_ind_closs": [9.0, loss]}, seed=seed, **{"loss.loss_ct_weights": weight})
        for seed, loss in losses.items()
    ]


def changed(run: Path, copy: Path, change: Any) -> Path:
    """A copy of a run with another manifest."""
    shutil.copytree(run, copy)
    file = copy / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return copy


def test_the_same_run_twice_differs_in_nothing(finished_run: Path) -> None:
    found = compare_runs(finished_run, finished_run)
    assert (found.settings, found.data, found.code, found.lines) == ((), (), (), ())
    closs = next(row for row in found.metrics if row.name == "val_ind_closs")
    assert closs.values[0] == closs.values[1]
    assert closs.best_run is None


def test_one_line_of_code_one_frame_and_one_package_are_each_named(finished_run: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        diff = "diff --git a/loss.py b/loss.py\n--- a/loss.py\n+++ b/loss.py\n@@ -1 +1 @@\n-scale = 1\n+scale = 2\n"
        manifest["git"] = {"commit": "0" * 40, "dirty": True, "diff": diff}
        manifest["packages"]["numpy"] = "1.0"
        manifest["fingerprints"]["data.train"] = "f" * 64

    found = compare_runs(finished_run, changed(finished_run, tmp_path / "other", change))
    assert [fact.what for fact in found.data] == ["data.train"]
    assert [fact.what for fact in found.code if "package" in fact.what] == ["package numpy"]
    assert {"commit of vlatrack", "uncommitted in vlatrack"} <= {fact.what for fact in found.code}
    assert {"B  loss.py: -scale = 1", "B  loss.py: +scale = 2"} <= set(found.lines)


def test_settings_differ_by_what_they_mean(finished_run: Path, tmp_path: Path) -> None:
    """A run of before train.ema has it by its default; paths, trackers and the experiment's name do not count."""
    older = tmp_path / "older"
    shutil.copytree(finished_run, older)
    lines = (older / "journal.jsonl").read_text().splitlines(keepends=True)
    start = json.loads(lines[0])
    params = start["data"]["params"]
    del params["train.ema"]
    params |= {"optim.lr": 0.125, "train.workers": 3, "name": "renamed", "data.train.path": "elsewhere"}
    (older / "journal.jsonl").write_text(json.dumps(start, separators=(",", ":")) + "\n" + "".join(lines[1:]))
    found = compare_runs(finished_run, older)
    assert [(s.path, s.values[1], s.decides) for s in found.settings] == [
        ("optim.lr", 0.125, True),
        ("train.workers", 3, False),
    ]


def test_a_manifest_of_an_earlier_version_is_compared_in_what_it_has(finished_run: Path, tmp_path: Path) -> None:
    def age(manifest: dict[str, Any]) -> None:
        for key in ("format", "user_git", "python", "environment", "image", "directory"):
            del manifest[key]
        manifest["packages"] = {"python": "3.10.1", "torch": manifest["packages"]["torch"], "numpy": "1.0"}

    found = compare_runs(finished_run, changed(finished_run, tmp_path / "old", age))
    assert {fact.what for fact in found.code} == {"Python", "package numpy"}


def test_first_last_and_best_follow_the_direction_and_the_best_run_is_marked(tmp_path: Path) -> None:
    a = made(tmp_path, {"val_ind_closs": [3.0, 1.0, 2.0], "val_ind_acc_action": [0.1, 0.5, 0.4]})
    b = made(tmp_path, {"val_ind_closs": [3.0, 2.5, float("nan")], "val_ind_acc_action": [0.1, 0.2, 0.6]})
    rows = {row.name: row for row in compare_runs(a, b, metrics=["val_ind_acc_*"]).metrics}
    closs, accuracy = rows["val_ind_closs"].values, rows["val_ind_acc_action"].values
    assert [(v.first, v.best, v.best_step) for v in closs if v] == [(3.0, 1.0, 2), (3.0, 2.5, 2)]
    assert [v.best for v in accuracy if v] == [0.5, 0.6]
    assert rows["val_ind_acc_action"].best_run == 1
    assert rows["val_ind_closs"].best_run is None, "of one finite value there is no best"
    with pytest.raises(VlatrackError, match=r"^--metrics: no run has logged val_ind_clos \(did you mean val_ind_closs"):
        compare_runs(a, b, metrics=["val_ind_clos"])


def grouped(folder: Path) -> RunComparison:
    runs = of_seeds(folder, {0: 1.0, 1: 1.2, 2: 1.1, 3: 1.3}) + of_seeds(folder, {0: 2.0, 1: 2.2, 2: 2.1}, weight=10.0)
    return compare_runs(*runs, *of_seeds(folder, {3: 1.9}, weight=10.0), *of_seeds(folder, {0: 5.0}))


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    found = grouped(tmp_path)
    first, second = found.groups
    assert (first.runs, first.repeated, second.runs) == ((0, 1, 2, 3, 8), (8,), (4, 5, 6, 7))
    assert second.label == "loss_ct_weights=10.0"
    spread = first.spreads["val_ind_closs"]
    assert (spread.n, round(spread.mean, 6), round(spread.std or 0, 6)) == (4, 1.15, 0.129099)
    assert spread.interval is not None
    assert 1.0 <= spread.interval[0] < 1.15 < spread.interval[1] <= 1.3
    (difference,) = found.group_differences
    assert round(difference.difference, 6) == -0.9
    assert difference.interval is not None
    assert difference.interval[1] < -0.7


def test_the_same_runs_give_the_same_intervals(tmp_path: Path) -> None:
    assert grouped(tmp_path / "x").groups[0].spreads == grouped(tmp_path / "y").groups[0].spreads


def test_of_one_or_two_seeds_no_interval_is_claimed(tmp_path: Path) -> None:
    found = compare_runs(*of_seeds(tmp_path, {0: 1.0, 1: 1.2}), *of_seeds(tmp_path, {0: 2.0}, weight=10.0))
    two, one = (group.spreads["val_ind_closs"] for group in found.groups)
    assert (two.n, two.interval, one.n, one.std, one.interval) == (2, None, 1, None, None)
    assert found.group_differences[0].interval is None


@pytest.mark.parametrize(
    ("gate", "code", "told"),
    [
        ("val_ind_closs <= B * 1.2", 0, "PASS"),
        ("val_ind_closs<=B*1.05", 1, "FAIL"),
        ("val_ind_closs <= B + 20%", 0, "the limit is 1.2"),
        ("val_ind_closs <= B * 1.1 + 0.2", 0, "the limit is 1.3"),
        ("val_ind_closs <= C", 0, "PASS"),
        ("val_ind_closs < 1.1", 1, "FAIL"),
        ("val_ind_closs <= 1.1e0", 0, "PASS"),
        ("val_ood_closs <= B", 1, "B has not logged it"),
        ("val_ind_loss_ct <= 1", 1, "A has inf, which reaches nothing"),
    ],
)
def test_a_gate_holds_the_first_run_against_a_number_or_another_run(
    tmp_path: Path, gate: str, code: int, told: str
) -> None:
    a = made(tmp_path, {"val_ind_closs": [1.1], "val_ood_closs": [1.0], "val_ind_loss_ct": [float("inf")]})
    runs = a, made(tmp_path, {"val_ind_closs": [1.0]}), made(tmp_path, {"val_ind_closs": [1.2]})
    done, output = compare(*runs, "--gate", gate)
    assert (done, told in output) == (code, True), output
    content = json.loads(compare(*runs, "--gate", gate, "--json")[1])
    assert content["verdict"] == ("fail" if code else "pass")


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("val_ind_closs = B", "is no gate; write it as val_ind_loss_ct <= B"),
        ("val_ind_closs <= B - 2pp", "pp is for success"),
        ("val_ind_closs <= A", "compares A with itself"),
        ("val_ind_closs <= D", "there is no run D; the runs are A to B"),
        ("val_ind_clos <= B", r"no run has logged val_ind_clos \(did you mean val_ind_closs\?\)"),
        ("val_ind_closs >= B", "lower is better of val_ind_closs; write val_ind_closs <= B"),
        ("success >= B - 2pp", "success is of evaluations in a simulator"),
    ],
)
def test_a_gate_that_means_nothing_is_one_line(tmp_path: Path, gate: str, told: str) -> None:
    runs = [made(tmp_path, {"val_ind_closs": [1.0]}) for _ in "ab"]
    with pytest.raises(VlatrackError, match=told):
        compare(*runs, "--gate", gate)


def test_a_run_is_named_by_latest_by_the_beginning_and_by_the_end_of_its_id(tmp_path: Path) -> None:
    for name in ("20260101-100000-aaaa", "20260102-100000-bbbb", "20260102-110000-cccc"):
        made(tmp_path / "new", {"val_ind_closs": [1.0]}).rename(tmp_path / name)
        (tmp_path / "runs" / "exp").mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(tmp_path / "runs" / "exp" / name)

    def named(*words: str) -> list[str]:
        return [run.name[-4:] for run in compare_runs(*words, runs_folder=tmp_path / "runs").runs]

    assert named("latest", "latest~2") == ["cccc", "aaaa"]
    assert named("20260101", "bbbb", "exp/20260102-11") == ["aaaa", "bbbb", "cccc"]
    with pytest.raises(VlatrackError, match=r"^20260102: fits exp/20260102-100000-bbbb and exp/20260102-110000-cccc; "):
        named("latest", "20260102")
    with pytest.raises(VlatrackError, match=r"^20260101-100000-aaab: no such run .*did you mean 20260101-100000-aaaa"):
        named("latest", "20260101-100000-aaab")
    with pytest.raises(VlatrackError, match=r"^latest~3: .*runs has 3 runs"):
        named("latest", "latest~3")


def test_the_page_asks_for_nothing_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    runs = [made(tmp_path, {"val_ind_closs": [2.0, 1.0], HOSTILE: [1.0]}, seed=i, note=HOSTILE * i) for i in range(2)]
    code, output = compare(*runs, "--metrics", "*script*", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page + output
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert page == comparison_page(compare_runs(*runs, metrics=["*script*"]))


def test_many_runs_stand_below_one_another_and_too_many_are_refused(tmp_path: Path) -> None:
    runs = [made(tmp_path, {"val_ind_closs": [2.0, 1.0 + i]}) for i in range(5)]
    code, output = compare(*runs)
    assert code == 0
    assert "A  1*" in " ".join(output.split()).replace("A 1*", "A  1*")
    with pytest.raises(VlatrackError, match="takes 2 to 20 runs, not 21"):
        compare_runs(*runs[:1] * 21)


@pytest.mark.parametrize("content", ["[]", '{"packages": 3}', '{"git": {}}', "no JSON", "[" * 100_000])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    a, b = (made(tmp_path, {"val_ind_closs": [1.0]}) for _ in "ab")
    (b / "manifest.json").write_text(content)
    with pytest.raises(VlatrackError, match=r"manifest\.json: no manifest of a run"):
        compare_runs(a, b)


def test_episodes_and_runs_are_not_compared_with_one_another(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("task,initial_state,seed,outcome\nopen,0,0,success\n")
    run = made(tmp_path, {"val_ind_closs": [1.0]})
    with pytest.raises(VlatrackError, match=r"a\.csv: episodes of an evaluation, beside a run"):
        compare(run, table)
    with pytest.raises(VlatrackError, match="--metrics and --html: are for runs"):
        compare(table, table, "--metrics", "x*")


def test_two_runs_are_compared_without_torch_or_a_tracker(finished_run: Path, tmp_path: Path) -> None:
    """Which take longer to import than the comparison may."""
    probe = (
        "import sys; from vlatrack.cli.main import app\n"
        f"app(['compare', {str(finished_run)!r}, {str(finished_run)!r}], standalone_mode=False)\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=os.environ | ENVIRONMENT
    )
    assert {"torch", "mlflow", "wandb", "scipy", "numpy"}.isdisjoint(done.stderr.split())
    assert "val_ind_closs" in done.stdout


def test_of_a_long_run_first_last_and_best_are_those_of_all_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by another way than a short one, also where it went back, ended not finite, and has damaged lines."""
    values = np.random.default_rng(0).normal(size=9000)
    values[[4000, 7000]] = -9.0, -8.0
    with vlatrack.start_run("exp", runs=tmp_path, backends=[]) as run:
        for step, value in enumerate(values):
            run.log({"val_ind_closs": value, "val_ood_closs": value if step < 8000 else float("inf")}, step=step)
            if step == 6999:
                run.rewind(3900, 6999)
    journal = Path(run.path) / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[7003] = lines[7003][:100] + b"\n"
    journal.write_bytes(b"".join(lines))
    short = metric_rows([RecordedRun.read(run.path).history])
    monkeypatch.setattr(history_module, "_LONG_FROM_BYTES", 1)
    found = RecordedRun.read(run.path)
    assert metric_rows([found.history]) == short
    assert [row.values[0].best_step for row in short if row.values[0] is not None] == [7000, 7000]
    assert len(found.history["val_ind_closs"]) < 5000
    assert found.damaged == "journal.jsonl, line 7,004 is damaged (left out)"

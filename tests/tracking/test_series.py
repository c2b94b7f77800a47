import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from vlatrack import start_run
from vlatrack.tracking.journal import series as series_module
from vlatrack.tracking.journal.decimation import STEP, STRETCHES, VALUE, DecimatedSeries, thinned
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.journal.series import JournalSeries


def points(values: "np.ndarray", first: int = 0) -> "np.ndarray":
    steps = np.arange(first, first + len(values), dtype=float)
    return np.stack([steps, 1000 + steps, values], axis=1)


def series_of(journal: Path) -> JournalSeries:
    series = JournalSeries(journal)
    series.read_all()
    return series


def history_of(series: JournalSeries) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(int(step), value) for step, _, value in metric.points().tolist()]
        for name, metric in series.metrics.items()
    }


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[Mapping[int, Mapping[str, float]]], Path]:
    def write(logged: Mapping[int, Mapping[str, float]]) -> Path:
        with start_run("toy", runs=tmp_path, backends=[]) as run:
            for step, metrics in logged.items():
                run.log(metrics, step=step)
            return run.path / "journal.jsonl"

    return write


def test_a_short_series_is_kept_as_it_is() -> None:
    metric = DecimatedSeries()
    values = np.random.default_rng(0).normal(size=STRETCHES - 1)
    for begin in range(0, len(values), 100):
        metric.extend(points(values[begin : begin + 100], begin))
    assert np.array_equal(metric.points(), points(values))
    assert metric.settled_step == math.inf


def test_a_long_series_keeps_every_extreme_in_few_points() -> None:
    metric, values = DecimatedSeries(), np.random.default_rng(1).normal(size=100_003)
    values[77_777], values[5], values[-1] = 50.0, -50.0, 7.0
    for begin in range(0, len(values), 997):
        metric.extend(points(values[begin : begin + 997], begin))
    kept = metric.points()
    assert len(kept) <= 2 * STRETCHES + 4
    assert len(metric) == len(values)
    assert (kept[:, VALUE].min(), kept[:, VALUE].max()) == (-50.0, 50.0)
    assert tuple(kept[0]) == (0, 1000, values[0]) == metric.first
    assert kept[-1, VALUE] == 7.0
    assert (np.diff(kept[:, STEP]) > 0).all()
    # Every stretch of the curve as it is shown spans what the values in it span.
    for begin in range(0, 100_000, 10_000):
        inside = kept[(kept[:, STEP] >= begin) & (kept[:, STEP] < begin + 10_000), VALUE]
        assert inside.max() >= np.quantile(values[begin : begin + 10_000], 0.9999)


def test_what_is_settled_does_not_change_any_more() -> None:
    metric, values = DecimatedSeries(), np.random.default_rng(2).normal(size=3 * STRETCHES)
    metric.extend(points(values))
    before, settled = metric.points(), metric.settled_step
    metric.extend(points(values[:50], len(values)))
    after = metric.points()
    assert settled < math.inf
    assert np.array_equal(before[before[:, STEP] <= settled], after[after[:, STEP] <= settled])


def test_steps_that_a_run_goes_back_over_are_left_out() -> None:
    metric, values = DecimatedSeries(), np.random.default_rng(3).normal(size=5 * STRETCHES)
    metric.extend(points(values))
    metric.drop_from(4000)
    assert metric.points()[:, STEP].max() < 4000
    assert metric.last is not None
    assert metric.last[STEP] < 4000
    metric.extend(points(values[:10], 4000))
    assert metric.points()[-1, STEP] == 4009
    metric.drop_from(0)
    assert (len(metric.points()), metric.first, metric.last) == (0, None, None)


def test_values_that_are_not_finite_are_counted_and_named_by_their_steps() -> None:
    metric = DecimatedSeries()
    metric.extend(points(np.array([1.0, math.nan, 2.0, math.inf, -math.inf])))
    assert metric.points()[:, VALUE].tolist() == [1.0, 2.0]
    assert [step for step, _, _ in metric.non_finite] == [1, 3, 4]
    metric.extend(points(np.full(1000, math.nan), 5))
    assert metric.non_finite_count == 1003
    assert len(metric.non_finite) < 1003
    assert metric.last == (2, 1002, 2.0)


def test_thinned_points_keep_the_extremes_and_both_ends() -> None:
    values = np.random.default_rng(4).normal(size=9_999)
    thin = thinned(points(values), 500)
    assert len(thin) <= 503
    assert (thin[:, VALUE].min(), thin[:, VALUE].max()) == (values.min(), values.max())
    assert (thin[0, STEP], thin[-1, STEP]) == (0, 9_998)
    assert np.array_equal(thinned(points(values[:100]), 500), points(values[:100]))


def test_a_journal_is_read_as_the_history_says_on_both_ways(
    journal: Callable[[Mapping[int, Mapping[str, float]]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = {step: {"train_loss": 1 / step, "epoch": step / 40} for step in range(1, 200)}
    logged |= {step: {**logged[step], "val_ind_loss": float(step)} for step in (40, 80)}
    path = journal(logged)
    expected = metric_history(path)
    assert history_of(series_of(path)) == expected
    monkeypatch.setattr(series_module, "_ARROW_FROM_BYTES", 1)
    with_arrow = series_of(path)
    assert history_of(with_arrow) == expected
    assert with_arrow.last_step == 199
    assert [record.kind for record in with_arrow.others] == ["start", "finish"]


@pytest.mark.parametrize("arrow_from", [1, 1 << 30])
def test_values_that_are_not_finite_are_read_on_both_ways(
    journal: Callable[[Mapping[int, Mapping[str, float]]], Path], monkeypatch: pytest.MonkeyPatch, arrow_from: int
) -> None:
    monkeypatch.setattr(series_module, "_ARROW_FROM_BYTES", arrow_from)
    logged = {step: {"train_loss": float(step), "grad": 2.0} for step in range(10)}
    logged[3]["train_loss"], logged[4]["train_loss"], logged[5]["grad"] = math.nan, math.inf, -math.inf
    series = series_of(journal(logged))
    assert [(s, str(v)) for s, _, v in series.metrics["train_loss"].non_finite] == [(3, "nan"), (4, "inf")]
    assert [(s, str(v)) for s, _, v in series.metrics["grad"].non_finite] == [(5, "-inf")]
    assert len(series.metrics["train_loss"]) == 8


@pytest.mark.parametrize("arrow_from", [1, 1 << 30])
def test_a_damaged_line_is_named_and_the_rest_is_read(
    journal: Callable[[Mapping[int, Mapping[str, float]]], Path], monkeypatch: pytest.MonkeyPatch, arrow_from: int
) -> None:
    monkeypatch.setattr(series_module, "_ARROW_FROM_BYTES", arrow_from)
    path = journal({step: {"train_loss": float(step)} for step in range(20)})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5][:30] + b"\n"
    lines[9] = b"\xff\x00 not JSON at all\n"
    path.write_bytes(b"".join(lines))
    series = series_of(path)
    assert list(series.damage.reasons) == [sum(map(len, lines[:5])), sum(map(len, lines[:9]))]
    assert series.damage.told() == "journal.jsonl, lines 6 and 10 are damaged (left out)"
    assert len(series.metrics["train_loss"]) == 18
    assert series.others[-1].kind == "finish"


def test_reading_goes_on_where_it_was_and_waits_for_the_end_of_a_line(
    journal: Callable[[Mapping[int, Mapping[str, float]]], Path], tmp_path: Path
) -> None:
    content = journal({step: {"train_loss": float(step)} for step in range(50)}).read_bytes()
    growing = tmp_path / "journal.jsonl"
    growing.touch()
    series = JournalSeries(growing)
    for size in [*range(0, len(content), 777), len(content)]:
        growing.write_bytes(content[:size])
        series.read_all()
    assert history_of(series) == {"train_loss": [(step, float(step)) for step in range(50)]}
    assert series.records == content.count(b"\n")
    growing.write_bytes(content[: content.index(b"\n", 2000) + 1])  # another journal in its place
    series.read_all()
    assert series.offset == growing.stat().st_size
    assert len(series.metrics["train_loss"]) < 50


def test_what_a_run_went_back_over_is_not_in_its_series(tmp_path: Path) -> None:
    with start_run("toy", runs=tmp_path, backends=[]) as run:
        for step in range(10):
            run.log({"train_loss": float(step)}, step=step)
        run.rewind(5, 9)
        for step in range(5, 8):
            run.log({"train_loss": -float(step)}, step=step)
        path = run.path / "journal.jsonl"
    series = series_of(path)
    assert history_of(series) == metric_history(path)
    assert series.last_step == 7


@pytest.mark.parametrize("arrow_from", [1, 1 << 30])
def test_some_steps_are_read_again_in_full_and_without_what_the_run_went_back_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow_from: int
) -> None:
    monkeypatch.setattr(series_module, "_ARROW_FROM_BYTES", arrow_from)
    monkeypatch.setattr(series_module, "_PART_BYTES", 2000)
    with start_run("toy", runs=tmp_path, backends=[]) as run:
        for step in range(200):
            run.log({"train_loss": float(step)}, step=step)
        run.rewind(90, 199)
        for step in range(90, 150):
            run.log({"train_loss": -float(step)}, step=step)
        path = run.path / "journal.jsonl"
    series = JournalSeries(path)
    while series.read(most_bytes=1500):
        pass
    whole = metric_history(path)["train_loss"]
    for low, high in ((0, 199), (70, 100), (95, 95), (120, 180), (148, 160), (-5, 3), (150, 199)):
        found = series.again(low, high, most_bytes=1 << 20)
        assert found is not None
        kept = found["train_loss"].points().tolist() if "train_loss" in found else []
        assert [(step, value) for step, _, value in kept] == [(s, v) for s, v in whole if low <= s <= high]
    assert series.again(0, 149, most_bytes=5000) is None
    few = series.again(20, 21, most_bytes=5000)
    assert few is not None
    assert few["train_loss"].points()[:, STEP].tolist() == [20, 21]


def test_another_writer_s_whole_numbers_and_nested_names_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    record = {"v": 1, "run": "a", "writer": "w", "seq": 0, "t_ms": 5, "kind": "metrics", "step": 1}
    odd = {"kind": 3, 'a"b': 1, "<script>": 2.5}
    path.write_text("".join(json.dumps(record | {"step": step, "data": odd}) + "\n" for step in range(3)))
    assert history_of(series_of(path)) == {name: [(step, value) for step in range(3)] for name, value in odd.items()}


@pytest.mark.parametrize("wrong", [{"run": "../elsewhere"}, {"t_ms": None}, {"step": "3"}])
def test_lines_that_only_look_like_records_are_named_on_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    path, good = tmp_path / "journal.jsonl", {"v": 1, "run": "a", "writer": "w", "seq": 0, "t_ms": 5}
    record = {**good, "kind": "metrics", "step": 1, "data": {"train_loss": 0.5}}
    lines = [json.dumps(record) + "\n", json.dumps(record | wrong) + "\n"]
    path.write_text("".join(lines))
    for arrow_from in (1, 1 << 30):
        monkeypatch.setattr(series_module, "_ARROW_FROM_BYTES", arrow_from)
        series = series_of(path)
        assert list(series.damage.reasons) == [len(lines[0])]
        assert history_of(series) == {"train_loss": [(1, 0.5)]}

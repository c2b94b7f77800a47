"""`vlatrack health`: the verdict on a run, as lines and as JSON, and by the exit code."""

import json
from pathlib import Path

import pytest
from health_curves import journal_text

from vlatrack.cli import main as program


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["vlatrack", *words])
    with pytest.raises(SystemExit) as caught:
        program.main()
    return int(caught.value.code or 0)


@pytest.fixture
def run(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True)
    (run_dir / "journal.jsonl").write_text(journal_text("toy-0"))
    return run_dir


def test_a_healthy_run_has_exit_code_0(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "health", str(run)) == 0
    assert capsys.readouterr().out == f"{run}: healthy\n"


def test_a_run_with_a_nan_has_exit_code_1_and_its_findings_are_strict_json(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, last = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(next(line for line in reversed(lines) if '"train_loss"' in line))
    record["data"]["train_loss"] = "NaN"
    (run / "journal.jsonl").write_text("".join([*lines, last, json.dumps(record) + "\n"]))
    assert run_main(monkeypatch, "health", str(run), "--json") == 1
    told = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert told["verdict"] == "critical: not_finite"
    (finding,) = told["findings"]
    assert (finding["metric"], finding["value"], finding["severity"]) == ("train_loss", "NaN", "critical")
    assert run_main(monkeypatch, "health", str(run)) == 1
    assert "\ncritical not_finite: train_loss is nan at step" in capsys.readouterr().out


def test_no_run_has_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "health", str(tmp_path)) == 2
    assert "no run directory (journal.jsonl is missing)" in capsys.readouterr().err

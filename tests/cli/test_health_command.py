"""What the command line says of the health of a run: `vlatrack health`, and the terminal of a training."""

import json
from pathlib import Path

import pytest
from health_curves import journal_text

from vlatrack.cli import main as program
from vlatrack.cli.progress import TerminalDisplay
from vlatrack.health.finding import Finding, Severity
from vlatrack.training.callback import RunEnd


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


def test_the_terminal_shows_a_finding_in_one_line_and_ends_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(
        "spike", Severity.WARNING, "train_closs", 7, 9.0, "train_\x1b[2Jcloss\njumped", "a lower optim.lr"
    )
    with TerminalDisplay() as display:
        display.on_health(finding)
        display.on_run_end(RunEnd(tmp_path, "FINISHED", health="warning: spike"))
        display.on_run_end(RunEnd(tmp_path, "KILLED", health="healthy"))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == r"health: train_\x1b[2Jcloss\njumped; try: a lower optim.lr"
    assert told[1] == "health      warning: spike"
    assert told[2].startswith("FINISHED ")
    assert told[3:] == ["health      healthy", f"KILLED {tmp_path}"]

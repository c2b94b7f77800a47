"""`vlatrack bench tracking`: what it prints and writes while it measures; the figures themselves are the bench's."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.cli import bench
from vlatrack.cli.bench import Figure, Sizes
from vlatrack.cli.main import app, main
from vlatrack.errors import SpecError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "figures.json"


def test_each_figure_is_printed_and_written_when_it_is_measured(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, str]] = []

    def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
        for number in range(3):
            yield Figure(f"figure {number}", number, "us", 1)
            seen.append((len(json.loads(output.read_text())), capsys.readouterr().out.splitlines()[-1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "PARTS", {"logging": measure})
    monkeypatch.setattr(sys, "argv", ["vlatrack", "bench", "tracking", "--only", "logging", "-o", str(output)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert [number for number, _ in seen] == [1, 2, 3]
    assert [line.split()[:3] for _, line in seen] == [["figure", str(n), str(n)] for n in range(3)]
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped; 3 figures are in {output}"
    assert [figure["kept"] for figure in json.loads(output.read_text())] == [True, True, False]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_its_own_exit_code_and_keeps_what_was_measured(
    number: signal.Signals, code: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
        yield Figure("figure", 1, "us", 1)
        signal.raise_signal(number)

    before = {ending: signal.getsignal(ending) for ending in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(bench, "PARTS", {"logging": measure})
    monkeypatch.setattr(sys, "argv", ["vlatrack", "bench", "tracking", "--only", "logging", "-o", str(output)])
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
    assert stopped.value.code == code
    assert len(json.loads(output.read_text())) == 1


def test_only_some_parts_are_measured(output: Path) -> None:
    words = ["bench", "tracking", "--only", "journal", "--journal", "2000", "-o", str(output)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    named = [figure["what"] for figure in json.loads(output.read_text())]
    assert named == [f"journal of 2,000 records, {what}" for what in ("opening", "tailing", "status")]
    assert done.output.splitlines()[1].startswith(named[0])


@pytest.mark.parametrize("only", ["speed", "", "logging,speed"])
def test_an_unknown_part_is_one_line(output: Path, only: str) -> None:
    with pytest.raises(SpecError, match="choose from logging, delivery, journal, steps, separated by commas"):
        CliRunner().invoke(app, ["bench", "tracking", "--only", only, "-o", str(output)], catch_exceptions=False)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PARTS", {"logging": lambda *_: pytest.fail("measured")})
    output = tmp_path / "none" / "figures.json"
    monkeypatch.setattr(sys, "argv", ["vlatrack", "bench", "tracking", "--only", "logging", "-o", str(output)])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert capsys.readouterr().err == f"error: {output}: No such file or directory\n"

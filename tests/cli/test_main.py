"""The program as a user meets it: exit codes, streams, and how fast it starts."""

import json
import re
import resource
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from launching import running

from vlatrack import __version__
from vlatrack.cli import main as program
from vlatrack.errors import DataError

YAML = """\
name: demo
backbone: {init: scratch, preset: tiny}
data:
  cameras: [front]
  train: {kind: lerobot, path: not/there}
  val_ind: {kind: lerobot, path: PRESENT}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "exp.yaml"
    path.write_text(YAML.replace("PRESENT", str(tmp_path)))
    return path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["vlatrack", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    return int(ended.value.code or 0)


def start_program(*arguments: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", "from vlatrack.cli.main import main; main()", *arguments]
    # A shell starts what it puts into the background with SIGINT ignored, and so would this test be.
    heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)


def test_a_real_process_tells_a_mistake_on_stderr_and_exits_with_2(file: Path) -> None:
    with start_program("validate", str(file), "optim.lrr=1") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "error: override 'optim.lrr=1'  optim.lrr: unknown key (did you mean 'lr'?)\n"


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'wandb', 'matplotlib', 'numpy', 'pyarrow', 'pydantic', 'av', 'h5py'}"
    code = (
        "import atexit, sys; from vlatrack.cli.main import main; "
        f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules)), file=sys.stderr)); "
        "sys.argv = ['vlatrack', '--help']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
    for command in ("run", "evaluate", "validate", "schema", "ui", "sync", "status", "reap", "data"):
        assert re.search(rf"^│ {command} +\S", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(("arguments", "limit_s"), [(["--help"], 0.5), (["validate", "FILE"], 1.5)])
def test_a_command_starts_quickly(file: Path, arguments: list[str], limit_s: float) -> None:
    def cpu_seconds() -> float:
        # Starting up is work of one thread: its processor time is its wall time on an idle machine.
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = cpu_seconds()
    with start_program(*[str(file) if argument == "FILE" else argument for argument in arguments]) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert cpu_seconds() - before < limit_s


def test_validate_shows_what_the_experiment_comes_to(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert (
        run_main(monkeypatch, "validate", str(file), "train.epochs=3", "train.max_steps=7", "tracking.backends=[]") == 0
    )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in lines[:-1])
    assert lines[-1] == "OK"
    assert re.fullmatch(r"[0-9a-f]{12}", rows.pop("hash of settings"))
    assert rows == {
        "experiment": "demo",
        "backbone": "chameleon, scratch: tiny",
        "action chunk": "5 steps of 7 numbers",
        "bins": "256",
        "data.train": "lerobot, not/there (note: not there yet)",
        "data.val_ind": f"lerobot, {file.parent}",
        "data.val_ood": "none",
        "batch": "8 samples",
        "epochs": "3, at most 7 steps",
        "backends": "none (journal only)",
    }


@pytest.mark.parametrize(
    ("backbone", "shown"),
    [
        ("{kind: causal_lm, preset: small}", "causal_lm, scratch: small"),
        ("{kind: causal_lm, init: pretrained, checkpoint: some/qwen}", "causal_lm, pretrained: some/qwen"),
        ("{kind: custom, target: 'my_package:MyBackbone'}", "custom, my_package:MyBackbone"),
    ],
)
def test_validate_shows_which_backbone_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backbone: str, shown: str
) -> None:
    assert run_main(monkeypatch, "validate", str(file), f"backbone={backbone}") == 0
    assert re.search(rf"^backbone +{re.escape(shown)}\s*$", capsys.readouterr().out, re.MULTILINE)


def test_several_mistakes_are_one_line_each(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "validate", str(file), "seed=x", "name=[red]a[/red]") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.startswith("error: override ") for line in err.splitlines()] == [True, True]
    assert "Traceback" not in err


def test_an_error_of_any_room_leaves_as_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise DataError("here: nothing is left; look there")

    monkeypatch.setattr("vlatrack.spec.load.load_spec", fail)
    assert run_main(monkeypatch, "validate", str(file)) == 2
    assert capsys.readouterr().err == "error: here: nothing is left; look there\n"


def test_a_broken_invariant_is_not_taken_for_a_mistake_of_the_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("cannot be")

    monkeypatch.setattr("vlatrack.spec.load.load_spec", fail)
    monkeypatch.setattr(sys, "argv", ["vlatrack", "validate", str(file)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(AssertionError, match="cannot be"):
        program.main()


@pytest.mark.parametrize("arguments", [["validate"], ["validate", "a.yaml", "--nonsense"], ["nonsense"]])
def test_wrong_usage_exits_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    assert "Usage: " in capsys.readouterr().err


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"vlatrack {__version__}\n"


def test_ctrl_c_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    fifo = tmp_path / "exp.yaml"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    with start_program("validate", str(fifo)) as process:
        with fifo.open("wb"):  # opening this end returns once the program has opened the other
            process.send_signal(signal.SIGINT)
        # Closed by now: Python may have entered the read with the signal pending, which would wait for ever.
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_schema_describes_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["required"]) == {"name", "backbone", "data"}
    blocks = [schema, *schema["$defs"].values()]
    assert all(block["additionalProperties"] is False and block["description"] for block in blocks)
    for block in blocks:
        for name, setting in block["properties"].items():
            assert {"description", "$ref", "const"} & set(setting), f"{block['title']}.{name} has no description"
    assert schema["$defs"]["TokenizerSpec"]["properties"]["bins"]["minimum"] == 2
    references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert set(references) == set(schema["$defs"])

    output = tmp_path / "schema.json"
    assert run_main(monkeypatch, "schema", "--output", str(output)) == 0
    assert json.loads(output.read_text()) == schema
    assert run_main(monkeypatch, "schema", "--output", str(tmp_path / "no" / "schema.json")) == 2

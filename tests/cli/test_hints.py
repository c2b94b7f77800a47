"""What people type from habit gets one line with the right command, exit code 2, and nothing else."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vlatrack.cli import main as program
from vlatrack.spec.load import load_spec
from vlatrack.spec.tracking import MlflowBackend, WandbBackend

MEANT = {
    "init mine": "new mine",
    "train exp.yaml --max-steps 8": "run exp.yaml train.max_steps=8",
    "train exp.yaml --lr=1e-4 --epochs 3": "run exp.yaml optim.lr=1e-4 train.epochs=3",
    "eval runs/a/b --checkpoint last": "evaluate runs/a/b --checkpoint last",
    "resume runs/a/b": "run --resume runs/a/b",
    "run --config exp.yaml --runs elsewhere": "run exp.yaml --runs elsewhere",
    "run --batch-size 4 -c exp.yaml": "run exp.yaml train.batch_size=4",
    "run exp.yaml +train.epochs=3 ++seed=1": "run exp.yaml train.epochs=3 seed=1",
    "run exp.yaml --train.epochs=3": "run exp.yaml train.epochs=3",
    "run exp.yaml train.epochs 3": "run exp.yaml train.epochs=3",
    "run exp.yaml tracking.backends=[mlflow, wandb]": "run exp.yaml 'tracking.backends=[mlflow, wandb]'",
    "run exp.yaml --resume": "run exp.yaml --resume auto",
    "run --resume exp.yaml train.epochs=3": "run --resume auto exp.yaml train.epochs=3",
    "run --resume": "run --resume latest",
    "run exp.yaml --resume latest seed=1": "run --resume latest seed=1",
    "run quickstart": "run experiments/quickstart.yaml",
    "validate --config=exp.yaml": "validate exp.yaml",
    "bench train exp.yaml --layers 2 --max_steps 8": "bench train exp.yaml --layers 2 train.max_steps=8",
}


@pytest.mark.parametrize("words", MEANT)
def test_a_habit_of_other_programs_gets_the_command_to_copy(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vlatrack", *words.split()])
    with pytest.raises(SystemExit) as ended:
        program.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.endswith(f"; write: vlatrack {MEANT[words]}")
    # What is to be copied is no habit itself.
    copied = ["vlatrack", *shlex.split(MEANT[words])]
    assert (
        program.correction(copied[1:], dict(program._options_of(program.typer.main.get_command(program.app)))) is None
    )


@pytest.mark.parametrize(
    "words",
    [
        "run exp.yaml train.epochs=2 --runs x --resume auto",
        "run --resume runs/a/b train.epochs=80 --checkpoint best",
        "evaluate policy data.val_ood=null",
        "evaluate --policy ws://127.0.0.1:8000 experiments/evaluation/metaworld.yaml --episodes 5",
        "data record red --env-option stride=0.1 -o red",
        "status --since 2d",
        "run --help",
        "nonsense",
        "",
    ],
)
def test_a_command_as_it_should_be_is_left_alone(words: str) -> None:
    options = dict(program._options_of(program.typer.main.get_command(program.app)))
    assert program.correction(words.split(), options) is None


def test_trackers_without_options_may_be_written_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text(
        "name: n\nbackbone: {init: scratch, preset: tiny}\n"
        "data: {cameras: [front], train: {kind: lerobot, path: x}}\n"
        "tracking: {backends: [mlflow, {kind: wandb, project: vla}]}\n"
    )
    assert load_spec(file).tracking.backends == (
        MlflowBackend(kind="mlflow"),
        WandbBackend(kind="wandb", project="vla"),
    )
    assert load_spec(file, ["tracking.backends=[wandb]"]).tracking.backends == (WandbBackend(kind="wandb"),)


COMPLETE = """
eval "$(_VLATRACK_COMPLETE=source_bash vlatrack)"
while read -r line; do
    COMP_WORDS=($line); [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _vlatrack_completion vlatrack
    echo "${COMPREPLY[*]}" | tr '\\n' ' '; echo
done
"""


def test_bash_completes_commands_settings_their_values_and_runs(tmp_path: Path) -> None:
    """In real bash, which cuts words off at `=`."""
    program_file = tmp_path / "bin" / "vlatrack"
    program_file.parent.mkdir()
    program_file.write_text(f"#!{sys.executable}\nfrom vlatrack.cli.main import main\nmain()\n")
    program_file.chmod(0o755)
    run = tmp_path / "runs" / "exp" / "20260101-120000-ab12"
    run.mkdir(parents=True)
    (run / "journal.jsonl").touch()
    lines = {
        "vlatrack stat": "status",
        "vlatrack run exp.yaml train.non_f": "train.non_finite= train.non_finite=halt",
        "vlatrack run exp.yaml train.non_finite = sk": "skip",
        "vlatrack run exp.yaml train.non_finite =": "halt skip rollback",
        "vlatrack run --resume lat": "latest",
        "vlatrack sync runs/": "runs/exp/20260101-120000-ab12",
    }
    environment = os.environ | {
        "PATH": f"{program_file.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(program.__file__).parents[2]),
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    assert [line.strip() for line in done.stdout.splitlines()] == list(lines.values()), done.stderr


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys; from vlatrack.cli.completion import complete_setting\n"
        "assert 'train.non_finite=rollback' in complete_setting('train.non_finite=')\n"
        "assert 'loss.z_loss_weight=1e-05' in complete_setting('loss.')\n"
        "assert complete_setting('runs/x') == complete_setting('') == complete_setting('no.such=') == []\n"
        "print(sorted({'torch', 'numpy', 'mlflow', 'transformers', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"

"""README.md and CONTRIBUTING.md: their examples run, their commands parse, their keys and paths exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from happens import DOCUMENT as TABLE
from happens import document as table_of_the_tests
from program import TOY
from typer.core import TyperGroup

import vlatrack
from vlatrack.cli.main import app
from vlatrack.envs.metaworld import MetaWorld
from vlatrack.inference.observation import Interface
from vlatrack.serving.cameras import ObservationReader
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import load_spec

ROOT = Path(__file__).parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
FIRST_EVALUATION = ROOT / "docs" / "first-evaluation.md"

ELSEWHERE = (
    ("README.md", "vlatrack.Policy.load(", "tests/test_documentation.py"),
    ("README.md", "with vlatrack.start_run(", "tests/tracking/test_start_run.py"),
    ("CONTRIBUTING.md", 'yield Metric("acc_near"', "tests/metrics/test_metric_recipe.py"),
    ("CONTRIBUTING.md", 'states["acc_near"]', "tests/metrics/test_metric_recipe.py"),
)
"""Examples that another test carries out: the document, what the example holds, and that test."""


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The calls of vlatrack in the shell blocks of README.md and of the pages in docs, without comments and
    without what launches them."""
    files = (README, *sorted((ROOT / "docs").glob("*.md")))
    shells = [block.replace("\\\n", " ") for file in files for block in blocks(file, "sh")]
    lines = [line.partition(" > ")[0] for block in shells for line in block.splitlines()]
    found = [re.search(r"(?:^|/|-m )vlatrack ((?!--install-completion).*)", line) for line in lines]
    return [match[1] for match in found if match]


@pytest.mark.slow
def test_the_training_of_the_readme_runs_on_a_small_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks(README, "python") if "vlatrack.train(" in block]
    assert len(code.splitlines()) <= 10
    experiment = yaml.safe_load(TOY.read_text())
    experiment["train"] |= {"batch_size": 64, "micro_batch": 64}
    experiment["evaluate"] = {"open_loop": {"max_samples": 32}}
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert len((names["run"].path / "log_train.txt").read_text().splitlines()) == 2
    assert (tmp_path / "policy" / "policy.safetensors").is_file()
    (code,) = [block for block in blocks(README, "python") if "vlatrack.Policy.load(" in block]
    names |= {"vlatrack": vlatrack, "image": np.zeros((48, 48, 3), np.uint8), "state": np.zeros(2)}
    exec(compile(code.replace("observation.images.corner4", "front"), str(README), "exec"), names)
    assert names["chunk"].shape == (3, 2)


def test_every_other_python_example_is_carried_out_by_the_test_that_is_named_here() -> None:
    examples = [(file.name, code) for file in (README, GUIDE) for code in blocks(file, "python")]
    others = [(name, code) for name, code in examples if "vlatrack.train(" not in code]
    for name, code in others:
        assert sum(name == document and mark in code for document, mark, _ in ELSEWHERE) == 1, f"{name}:\n{code}"
    assert len(others) == len(ELSEWHERE)
    for document, _, test in ELSEWHERE:
        text = (ROOT / test).read_text()
        assert document.removesuffix(".md") in text or "import code_of" in text, test


@pytest.mark.parametrize("line", commands())
def test_command_of_a_document_parses(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line, comments=True)
    path = ["vlatrack"]
    while isinstance(command, TyperGroup):
        assert words, f"vlatrack {line}: no command"
        assert words[0] in command.commands, f"vlatrack has no command {words[0]}"
        path.append(words[0])
        command = command.commands[words.pop(0)]
    with command.make_context(" ".join(path), words) as context:
        assert context.args == []


def test_a_command_with_an_option_that_does_not_exist_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        test_command_of_a_document_parses("run experiments/quickstart.yaml --rezume latest")


@pytest.mark.parametrize("file", [README, GUIDE], ids=lambda file: file.name)
def test_overrides_of_the_shell_examples_are_keys_of_an_experiment(file: Path, tmp_path: Path) -> None:
    words = [word for block in blocks(file, "sh") for word in shlex.split(block, comments=True)]
    overrides = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)+=|init_from=", word)]
    for override in overrides:
        load_spec(ROOT / "experiments" / "quickstart.yaml", [override])
    assert overrides or file == GUIDE


def test_overview_of_the_yaml_shows_every_key_with_its_default(tmp_path: Path) -> None:
    (overview,) = [block for block in blocks(README, "yaml") if block.startswith("name: my-experiment")]
    file = tmp_path / "overview.yaml"
    file.write_text(overview)
    shown = load_spec(file)
    keys = _keys(yaml.safe_load(overview))
    # What a source or a tracker may have beside its kind, `vlatrack schema` lists.
    listed = {key for key in _keys(shown.model_dump(mode="json")) if not re.match(r"data\.(train|val_ind)\.", key)}
    assert listed - keys == set()

    required = {key: value for key, value in yaml.safe_load(overview).items() if key in ("name", "backbone", "data")}
    required["backbone"] = {"init": "scratch", "preset": "tiny"}
    required["data"] = {key: required["data"][key] for key in ("cameras", "train", "val_ind")}
    file.write_text(yaml.safe_dump(required))
    defaults = flatten(load_spec(file))
    wrong = {key: value for key, value in flatten(shown).items() if defaults[key] != value}
    assert wrong == {}, "the overview shows other values than the defaults"


def _keys(value: object, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return set()
    return {prefix + key for key in value} | {
        path for key, child in value.items() for path in _keys(child, f"{prefix}{key}.")
    }


@pytest.mark.parametrize("number", range(len(blocks(README, "yaml"))))
def test_yaml_of_the_readme_loads(number: int, tmp_path: Path) -> None:
    """A block that shows some keys alone changes those of the quickstart."""
    shown = yaml.safe_load(blocks(README, "yaml")[number])
    experiment = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    for section, keys in shown.items():
        if section == "backbone" and "init" not in keys:
            keys = experiment["backbone"] | keys
        experiment[section] = keys
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    load_spec(tmp_path / "experiment.yaml")


@pytest.mark.parametrize(
    "file",
    [README, GUIDE, ROOT / "docker" / "README.md", FIRST_EVALUATION],
    ids=["README", "CONTRIBUTING", "docker", "first-evaluation"],
)
def test_every_path_that_a_document_names_exists(file: Path) -> None:
    named = re.findall(r"`((?:vlatrack|tests|experiments|docker)/[\w./-]+)`", file.read_text(encoding="utf-8"))
    named += re.findall(r"\b((?:vlatrack|tests|experiments|docker)/[\w./-]+\.(?:py|yaml|md))\b", file.read_text())
    assert named
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []


def test_the_client_of_the_first_evaluation_asks_for_what_there_is() -> None:
    """It needs Meta-World and openpi's client to run; what it takes of vlatrack is here."""
    (code,) = blocks(FIRST_EVALUATION, "python")
    compile(code, str(FIRST_EVALUATION), "exec")
    assert "coffee-button-v3" in MetaWorld.tasks
    assert MetaWorld(cameras=["corner4"], resolution=128).info.cameras == {"corner4": (128, 128)}
    sees = Interface(("observation.images.corner4",), state_dim=4, history=1, horizon=5, action_dim=4)
    reader = ObservationReader(sees, {})
    seen = reader.read(
        {"observation/corner4": np.zeros((128, 128, 3), np.uint8), "observation/state": np.zeros(4), "prompt": "push"}
    )
    assert seen.instruction == "push"


def test_the_table_of_what_happens_is_the_one_that_the_tests_make() -> None:
    assert TABLE.read_text(encoding="utf-8") == table_of_the_tests(), "write it anew: python tests/support/happens.py"

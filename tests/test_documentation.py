"""README.md, docs and CONTRIBUTING.md: their examples run, their commands parse, their keys, paths and links exist.

What the shell blocks do when they are carried out, tests/documentation looks at.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from documents import PAGES, ROOT, Block, anchors, blocks, links
from happens import DOCUMENT as TABLE
from happens import document as table_of_the_tests
from program import TOY
from recipes import PAGES as EXTENSION_PAGES
from typer.core import TyperGroup

import vlatrack
from vlatrack.cli.main import app
from vlatrack.envs.metaworld import MetaWorld
from vlatrack.inference.observation import Interface
from vlatrack.serving.cameras import ObservationReader
from vlatrack.spec.identity import flatten
from vlatrack.spec.load import load_evaluation, load_spec

OTHERS = [page for page in PAGES if page.name not in EXTENSION_PAGES]
"""The pages whose Python and YAML are not carried out by tests/test_extension_pages.py."""
README, GUIDE = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
DOCS = ROOT / "docs"
FIRST_EVALUATION, EXPERIMENT, PYTHON = (DOCS / f"{name}.md" for name in ("first-evaluation", "experiment", "python"))

ELSEWHERE = (
    ("python.md", "vlatrack.Policy.load(", "tests/test_documentation.py"),
    ("python.md", "with vlatrack.start_run(", "tests/tracking/test_start_run.py"),
    ("first-evaluation.md", "WebsocketClientPolicy(", "tests/test_documentation.py"),
    ("acting.md", "print(policy.interface)", "tests/documentation/test_pages_run.py"),
    ("acting.md", "vlatrack.Session(", "tests/documentation/test_pages_run.py"),
    ("acting.md", "mlflow.pyfunc.load_model(", "tests/documentation/test_pages_run.py"),
    ("serve.md", "PolicyClient(", "tests/documentation/test_pages_run.py"),
    ("CONTRIBUTING.md", 'yield Metric("acc_near"', "tests/metrics/test_metric_recipe.py"),
    ("CONTRIBUTING.md", 'states["acc_near"]', "tests/metrics/test_metric_recipe.py"),
)
"""Examples that another test carries out: the document, what the example holds, and that test."""


def commands() -> list[str]:
    """The calls of vlatrack in the shell blocks of README.md and of the pages in docs, without comments and
    without what launches them."""
    shells = [block.code.replace("\\\n", " ") for file in PAGES for block in blocks(file, "sh")]
    lines = [re.split(r" > | \|\|? | && |\)$", line)[0] for block in shells for line in block.splitlines()]
    found = [re.search(r"(?:^|/|-m |[=(!] ?)vlatrack ((?!--install-completion).*)", line) for line in lines]
    return [match[1] for match in found if match]


@pytest.mark.slow
def test_the_training_from_python_runs_on_a_small_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block.code for block in blocks(PYTHON, "python") if "vlatrack.train(" in block.code]
    assert len(code.splitlines()) <= 10
    experiment = yaml.safe_load(TOY.read_text())
    experiment["train"] |= {"batch_size": 64, "micro_batch": 64}
    experiment["evaluate"] = {"open_loop": {"max_samples": 32}}
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, str(PYTHON), "exec"), names)
    assert len((names["run"].path / "log_train.txt").read_text().splitlines()) == 2
    assert (tmp_path / "policy" / "policy.safetensors").is_file()
    (code,) = [block.code for block in blocks(PYTHON, "python") if "vlatrack.Policy.load(" in block.code]
    names |= {"vlatrack": vlatrack, "image": np.zeros((48, 48, 3), np.uint8), "state": np.zeros(2)}
    exec(compile(code.replace("observation.images.corner4", "front"), str(PYTHON), "exec"), names)
    assert names["chunk"].shape == (3, 2)


def test_every_other_python_example_is_carried_out_by_the_test_that_is_named_here() -> None:
    pythons = [block for file in (*OTHERS, GUIDE) for block in blocks(file, "python")]
    examples = [(block.page.name, block.code) for block in pythons if block.not_run is None]
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


def test_overrides_of_the_trainings_are_keys_of_an_experiment() -> None:
    trainings = [shlex.split(line, comments=True) for line in commands() if line.startswith(("run ", "bench "))]
    overrides = {word for words in trainings for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)}
    wrong = {"optim.lrr=1e-3"}  # shown for its message
    assert overrides > wrong
    for override in overrides - wrong:
        load_spec(ROOT / "experiments" / "quickstart.yaml", [override])


def test_overview_of_the_yaml_shows_every_key_with_its_default(tmp_path: Path) -> None:
    (overview,) = [block.code for block in blocks(EXPERIMENT, "yaml") if block.code.startswith("name: my-exp")]
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


@pytest.mark.parametrize("block", [block for page in OTHERS for block in blocks(page, "yaml")], ids=str)
def test_yaml_of_a_page_loads(block: Block, tmp_path: Path) -> None:
    """A block that shows some keys alone changes those of the quickstart, or of an evaluation."""
    shown = yaml.safe_load(block.code)
    if "experiment" in shown or block.not_run is not None:
        return  # a sweep, which tests/spec/test_sweep_files.py reads
    if {"suite", "acting"} & shown.keys():
        whole = yaml.safe_load((ROOT / "experiments" / "evaluation" / "metaworld.yaml").read_text()) | shown
        (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(whole))
        load_evaluation(tmp_path / "evaluation.yaml")
        return
    experiment = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    for section, keys in shown.items():
        if section == "backbone" and "init" not in keys:
            keys = experiment["backbone"] | keys
        experiment[section] = keys
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    load_spec(tmp_path / "experiment.yaml")


MADE = {
    "experiments/metaworld-mini.yaml",  # by vlatrack new --data
    *(
        "docker/.env",
        "docker/secrets/",
        "docker/secrets/postgres-password",
        "docker/secrets/dashboard-token",
    ),  # by docker/prepare.sh
    "vlatrack/experiments/",  # in a wheel
    "tests/test_jerk.py",  # of the package in extending.md
}
"""What documents name and a checkout lacks."""


@pytest.mark.parametrize(
    "file",
    [*PAGES, GUIDE, ROOT / "docker" / "README.md"],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_every_path_that_a_document_names_exists(file: Path) -> None:
    named = re.findall(r"`((?:vlatrack|tests|experiments|docker)/[\w./-]+)`", file.read_text(encoding="utf-8"))
    named += re.findall(r"\b((?:vlatrack|tests|experiments|docker)/[\w./-]+\.(?:py|yaml|md))\b", file.read_text())
    assert [path for path in sorted(set(named) - MADE) if not (ROOT / path).exists()] == []


def test_the_client_of_the_first_evaluation_asks_for_what_there_is() -> None:
    """It needs Meta-World and openpi's client to run; what it takes of vlatrack is here."""
    (block,) = blocks(FIRST_EVALUATION, "python")
    compile(block.code, str(FIRST_EVALUATION), "exec")
    assert "coffee-button-v3" in MetaWorld.tasks
    assert MetaWorld(cameras=["corner4"], resolution=128).info.cameras == {"corner4": (128, 128)}
    sees = Interface(("observation.images.corner4",), state_dim=4, history=1, horizon=5, action_dim=4)
    reader = ObservationReader(sees, {})
    seen = reader.read(
        {"observation/corner4": np.zeros((128, 128, 3), np.uint8), "observation/state": np.zeros(4), "prompt": "push"}
    )
    assert seen.instruction == "push"


@pytest.mark.parametrize("page", [*PAGES, GUIDE], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of this repository, and to a heading that it has."""
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = {README}, [README]
    while left:
        page = left.pop()
        linked = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        new = {target for target in linked if target in PAGES} - reached
        reached |= new
        left += new
    assert [page.name for page in PAGES if page not in reached] == []


def test_the_table_of_what_happens_is_the_one_that_the_tests_make() -> None:
    assert TABLE.read_text(encoding="utf-8") == table_of_the_tests(), "write it anew: python tests/support/happens.py"

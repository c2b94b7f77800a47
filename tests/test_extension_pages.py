"""docs/extending.md and the pages behind it: their files and commands are carried out, their messages come up."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from program import TOY, Program
from recipes import DOCS, PAGES, carry_out, commands_of, files_of, text_of, write_files

from vlatrack.builders.data import build_norm_stats, check_data, open_splits
from vlatrack.builders.policy import backbone_factory, build_losses, build_policy
from vlatrack.builders.simulator import check_tasks
from vlatrack.data.episodes import checked_frames
from vlatrack.data.store.token_store import TokenStore
from vlatrack.envs.base import make_environment
from vlatrack.errors import VlatrackError
from vlatrack.metrics.losses import LossMetric
from vlatrack.models.losses.base import checked_count, checked_total
from vlatrack.models.losses.terms import check_names
from vlatrack.spec.load import load_evaluation, load_spec
from vlatrack.testing.loss_contract import LossTermContract
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.journal.history import metric_history

ROOT = DOCS.parent


def said(page: str) -> list[str]:
    """The messages in the page's table of what goes wrong."""
    table = text_of(page).partition("## What goes wrong\n")[2]
    return re.findall(r"^\| `([^`]+)` (?:\||… )", table, re.MULTILINE)


def test_the_index_leads_to_every_page_and_every_block_of_code_is_a_file_that_tests_write() -> None:
    assert set(re.findall(r"^\|.*?\((write-[\w-]+\.md)\)", text_of("extending.md"), re.MULTILINE)) == set(PAGES[1:])
    assert {file.name for file in DOCS.glob("write-*.md")} == set(PAGES[1:])
    for page in PAGES:
        assert len(re.findall(r"^```(?:python|yaml|toml)$", text_of(page), re.MULTILINE)) == len(files_of(page)), page
        assert len(text_of(page).splitlines()) <= 155, page


@pytest.mark.parametrize(
    ("page", "file"), [(page, file) for page in PAGES for file in files_of(page) if file.endswith(".yaml")]
)
def test_yaml_of_a_page_is_an_experiment_an_evaluation_or_a_part_of_an_experiment(
    page: str, file: str, tmp_path: Path
) -> None:
    shown = yaml.safe_load(files_of(page)[file])
    experiment = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    is_part = "name" not in shown
    (tmp_path / file).write_text(yaml.safe_dump(experiment | shown if is_part else shown))
    (load_evaluation if "suite" in shown else load_spec)(tmp_path / file)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_modules_and_contracts_that_exist(page: str) -> None:
    text = text_of(page)
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
        assert (DOCS / link).is_file(), link
    for module, name in re.findall(r"`(\w+_contract)\.(\w+)`", text):
        assert hasattr(__import__(f"vlatrack.testing.{module}", fromlist=[name]), name)


@dataclass(frozen=True)
class Mistakes:
    """What a user of a page may do wrong, with the page's files importable and the folder the current one."""

    folder: Path

    def loss_terms(self) -> dict[str, Callable[[], object]]:
        import my_terms

        class Contract(LossTermContract):
            def make(self):
                return my_terms.ChunkSmoothness(weight=0.1)

        class NoSum(my_terms.ChunkSmoothness):
            def total(self, inputs):
                return inputs.actions.diff(n=2, dim=1)

        class Detached(my_terms.ChunkSmoothness):
            def total(self, inputs):
                return super().total(inputs).detach()

        class Mean(my_terms.ChunkSmoothness):
            def count(self, batch):
                return float("nan")

        class Taken(my_terms.ChunkSmoothness):
            metric = LossMetric("grad_norm", "taken")

        def built(target: str) -> object:
            terms = f"loss.terms=[{{kind: custom, target: '{target}', weight: 1}}]"
            return build_losses(load_spec(TOY, [terms]), TokenLayout())

        inputs = Contract()._inputs(Contract()._rows())
        return {
            "cannot be loaded": lambda: built("my_term:ChunkSmoothness"),
            "is not a LossTerm": lambda: built("collections:OrderedDict"),
            "total() returned": lambda: checked_total(NoSum(), inputs),
            "trains nothing": lambda: checked_total(Detached(), inputs),
            "count() returned": lambda: checked_count(Mean(), inputs.batch),
            "another metric": lambda: check_names([Taken()]),
        }

    def backbones(self) -> dict[str, Callable[[], object]]:
        import my_backbone

        def spec(target: str, options: str = "{}"):
            block = f"backbone={{kind: custom, target: '{target}', options: {options}, max_seq_len: 160}}"
            return load_spec(TOY, [block])

        class Averaging(my_backbone.SmallDecoder):
            def forward(self, input_ids, mask):
                return super().forward(input_ids, mask).mean(1)

        class FewIds(my_backbone.SmallDecoder):
            @property
            def output_layer(self):
                return self.tokens.weight[:100]

        class NoJson(my_backbone.SmallDecoder):
            def geometry(self):
                return {"dtype": torch.float32}

        NoJson.__name__ = "SmallDecoder"
        for kind in (Averaging, FewIds, NoJson):
            setattr(my_backbone, kind.__qualname__.rpartition(".")[2], kind)

        def policy(target: str):
            return build_policy(spec(target), backbone_factory(spec(target)).open())

        def step() -> None:
            made = policy("my_backbone:Averaging")
            made(collate([], made.layout))

        return {
            "cannot be loaded": lambda: backbone_factory(spec("my_backbones:SmallDecoder")),
            "derived from Backbone": lambda: backbone_factory(spec("collections:OrderedDict")),
            "unexpected keyword": lambda: backbone_factory(spec("my_backbone:SmallDecoder", "{depth: 3}")),
            "geometry()": lambda: policy("my_backbone:NoJson"),
            "forward() returned": step,
            "its vocabulary": lambda: policy("my_backbone:FewIds"),
            "FlexAttention": lambda: policy("my_backbone:SmallDecoder").use_flex_attention(),
        }

    def datasets(self) -> dict[str, Callable[[], object]]:
        subprocess.run([sys.executable, "make_demos.py"], cwd=self.folder, check=True)

        def checked(*changes: str) -> object:
            spec = load_spec(self.folder / "my_experiment.yaml", changes)
            store = TokenStore(self.folder / "store")
            splits = open_splits(spec, store)
            check_data(spec, splits, build_norm_stats(spec, splits["train"]))
            return splits

        def floats() -> None:
            source = checked()["train"].source
            source.frames = lambda episode, camera: np.zeros((episode.length, 3, 32, 32), np.float32)
            checked_frames(source, source.episodes()[0], "front")

        return {
            "cannot be loaded": lambda: checked("data.train.target=npz_folder:Npz"),
            "missing a required": lambda: checked("data.train.options={}"),
            "no camera": lambda: checked("data.cameras=[wrist]"),
            "expected uint8": floats,
            "numbers": lambda: checked("action_head.action_dim=7"),
            "no task": lambda: checked("data.train.tasks=[go home]"),
        }

    def environments(self) -> dict[str, Callable[[], object]]:
        with (self.folder / "arena.py").open("a") as file:  # a simulator is imported by a process of its own
            file.write("\n\nclass Silent(Arena):\n    expert_action = None\n")
        import arena

        from vlatrack.cli.data import record

        evaluation = load_evaluation(self.folder / "arena_test.yaml", ["suite.tasks=[green]"])
        return {
            "AttributeError": lambda: make_environment("arena:Arean", {}),
            "correct the options": lambda: make_environment("arena:Arena", {"size": 3}),
            "expert": lambda: record(["red"], self.folder / "demos", env="arena:Silent"),
            "no installed": lambda: make_environment("arena", {}),
            "no task": lambda: check_tasks(evaluation, arena.Arena.tasks),
        }

    def trackers(self) -> dict[str, Callable[[], object]]:
        def checked(target: str, options: dict[str, str] | None = None) -> None:
            check_backend(BackendConfig("custom", options=options or {}, target=target))

        login = {"folder": "http://me:pass" + "word@server/"}
        return {
            "cannot be loaded": lambda: checked("my_tracker:Tracker"),
            "correct the options": lambda: checked("my_tracker:MyTracker", {"table": "runs"}),
            "password": lambda: checked("my_tracker:MyTracker", login),
        }


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("write-a-loss-term.md", "loss_terms"),
        ("write-a-backbone.md", "backbones"),
        ("write-a-dataset-format.md", "datasets"),
        ("write-an-environment.md", "environments"),
        ("write-a-tracker.md", "trackers"),
    ],
)
def test_what_goes_wrong_is_told_as_the_page_says(
    page: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for file in tmp_path.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    expected = said(page)
    for what, make_mistake in getattr(Mistakes(tmp_path), kind)().items():
        with pytest.raises(VlatrackError) as error:
            make_mistake()
        found = [message for message in expected if message in str(error.value)]
        assert len(found) == 1, f"{what}: the page does not have: {error.value}"
        assert "\n" not in str(error.value)
        expected.remove(found[0])
    assert expected == [], "messages that nothing brings up"


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A folder in which the small experiment of the tests is the quickstart."""
    (tmp_path / "experiments").mkdir()
    shutil.copy(TOY, tmp_path / "experiments" / "quickstart.yaml")
    return tmp_path


def logged(folder: Path, metric: str) -> int:
    """How many values the only run of a folder has of a metric."""
    (run,) = [spec.parent for spec in (folder / "runs").glob("*/*/spec.yaml")]
    return len(metric_history(run / "journal.jsonl").get(metric, ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "metric"),
    [
        ("write-a-loss-term.md", "val_ind_weighted_smoothness"),
        ("write-a-backbone.md", "val_ind_closs"),
        ("write-a-dataset-format.md", "train_closs"),
        ("write-an-environment.md", "sim/custom/success"),
        ("write-a-tracker.md", "train_closs"),
    ],
)
def test_files_and_commands_of_a_page_work_in_an_empty_folder(page: str, metric: str, workshop: Path) -> None:
    assert "vlatrack run" in commands_of(page)
    assert "python -m pytest" in commands_of(page)
    done = carry_out(page, workshop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 5
    assert logged(workshop, metric) > 0
    if page == "write-a-tracker.md":
        (table,) = workshop.glob("runs/*/*/table/run.sqlite")
        assert table.stat().st_size > 0


@pytest.mark.slow
def test_a_package_is_built_installed_and_used_by_its_entry_point(workshop: Path, tmp_path: Path) -> None:
    source, installed = tmp_path / "vlatrack-jerk", tmp_path / "installed"
    write_files("extending.md", source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *alone, "--no-build-isolation", "-w", tmp_path / "wheels", source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("vlatrack_jerk-1.0-*.whl")
    subprocess.run([*pip, "install", *alone, "--target", installed, wheel], check=True, capture_output=True)

    program = Program(workshop)
    environment = {"PYTHONPATH": f"{installed}:{program.environment['PYTHONPATH']}"}
    (line,) = re.findall(r'"(loss\.terms=.*)"', text_of("extending.md"))
    try:
        training = program.start("run", "experiments/quickstart.yaml", "train.max_steps=4", line, **environment)
        out, err = training.communicate(timeout=200)
        assert training.returncode == 0, out + err
        assert logged(workshop, "val_ind_weighted_jerk") > 0
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", source / "tests"],
            cwd=source,
            env=program.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "5 passed" in tests.stdout, tests.stdout
        refused = program.run("run", "experiments/quickstart.yaml", line)
        assert refused.returncode == 2
        assert said("extending.md")[0] in refused.stderr
    finally:
        program.close()


def test_the_package_offers_its_class_in_a_group_that_there_is() -> None:
    project = tomllib.loads(files_of("extending.md")["pyproject.toml"])["project"]
    groups = set(re.findall(r"\| `(vlatrack\.\w+)` \|", text_of("extending.md")))
    code = "".join(file.read_text() for file in (ROOT / "vlatrack").rglob("*.py"))
    assert groups == set(re.findall(r'"(vlatrack\.(?:losses|backbones|datasets|environments|backends))"', code))
    assert set(project["entry-points"]) <= groups

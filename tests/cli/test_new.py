"""`vlatrack new`: what it writes, and what it leaves alone."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.cli import new as command
from vlatrack.cli.main import app
from vlatrack.errors import VlatrackError
from vlatrack.spec.load import load_spec

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(*words: str) -> list[str]:
    """The lines that the command prints."""
    done = CliRunner().invoke(app, ["new", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_quickstart_comes_with_its_data_and_can_be_run_from_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    *wrote, following = run("mine")
    assert wrote[0] == "wrote mine/experiments/quickstart.yaml"
    assert following == "next: cd mine && vlatrack run experiments/quickstart.yaml"
    for file in (file for file in Path("mine").rglob("*") if file.is_file()):
        assert file.read_bytes() == (EXPERIMENTS / file.relative_to("mine/experiments")).read_bytes()
    monkeypatch.chdir("mine")
    assert Path(load_spec(Path("experiments/quickstart.yaml")).data.train.path, "meta", "info.json").is_file()


def test_another_experiment_goes_beside_it_and_says_what_it_needs() -> None:
    run(".")
    (*_, following) = run(".", "--experiment", "libero_10")
    assert following.startswith("next: put its demonstrations into data/libero_10 and a Chameleon into checkpoints/")
    assert following.endswith("; then vlatrack run experiments/libero_10.yaml")
    assert {file.name for file in Path("experiments").glob("*.yaml")} == {"quickstart.yaml", "libero_10.yaml"}


def test_the_list_says_what_each_one_trains() -> None:
    assert [line.split()[0] for line in run("--list")] == list(command.SHIPPED)


def test_nothing_is_overwritten_and_then_nothing_is_written() -> None:
    Path("experiments/data/metaworld-mini").mkdir(parents=True)
    mine = Path("experiments/data/metaworld-mini/README.md")
    mine.write_text("mine")
    with pytest.raises(VlatrackError, match=r"README\.md: is there, and nothing was written"):
        run(".")
    assert [file for file in Path("experiments").rglob("*") if file.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_disk_that_is_full_half_way_leaves_no_half(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copyfile

    def fills_up(source: Path, target: Path) -> None:
        copy(source, target)
        if source.suffix == ".mp4":
            raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", fills_up)
    with pytest.raises(OSError, match="No space left"):
        run("mine")
    assert [file for file in Path("mine").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give the folder to write to"),
        (("mine", "--experiment", "libero_gaol"), r"no experiment 'libero_gaol'; did you mean libero_goal\?"),
    ],
)
def test_what_cannot_be_written_is_one_line(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(VlatrackError, match=told) as error:
        run(*words)
    assert "\n" not in str(error.value)
    assert list(Path().iterdir()) == []

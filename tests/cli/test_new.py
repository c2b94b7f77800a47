"""`vlatrack new`: what it writes, and what it leaves alone."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rlds_writer import episode_features, steps_of, write_rlds
from robomimic_file import write_robomimic
from rynnvla_data import vla_conversations, write_trajectories
from typer.testing import CliRunner

from vlatrack.builders.data import build_norm_stats, check_data, open_splits
from vlatrack.cli import new as command
from vlatrack.cli.main import app
from vlatrack.data.formats.libero import LiberoDataset
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import VlatrackError
from vlatrack.spec.load import load_spec

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
METAWORLD = EXPERIMENTS / "data" / "metaworld-mini"


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


def lerobot(folder: Path) -> list[str]:
    shutil.copytree(METAWORLD, folder / "doors: a & b")
    return [str(folder / "doors: a & b")]


def libero(folder: Path) -> list[str]:
    shutil.copytree(Path(__file__).parents[1] / "data" / "fixtures" / "libero-hdf5", folder / "libero")
    return [str(folder / "libero")]


def robomimic(folder: Path) -> list[str]:
    return [str(write_robomimic(folder / "lift.hdf5", lengths=(9, 7)))]


def rlds(folder: Path) -> list[str]:
    pytest.importorskip("crc32c")
    source = LiberoDataset(libero(folder)[0])
    records = [episode_features(source, episode) for episode in source.episodes()]
    return [str(write_rlds(folder, records, steps=steps_of(source, 16, 16), shards=1)), "--fps", "20"]


def conversations(folder: Path) -> list[str]:
    source = LiberoDataset(libero(folder)[0])
    lists = folder / "processed_data" / "convs"
    write_trajectories(lists.parent / "goal", source, dict(zip(source.cameras, ("third", "wrist"), strict=True)))
    lists.mkdir()
    found = vla_conversations(lists.parent / "goal", history=2, horizon=3, cameras=["third", "wrist"])
    (lists / "all.json").write_text(json.dumps(found["all"]))
    return [str(lists / "all.json")]


@pytest.mark.parametrize("dataset", [lerobot, libero, robomimic, rlds, conversations])
def test_a_dataset_of_any_format_gets_an_experiment_that_fits_it(
    dataset: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    wrote, following = run("mine", "--data", *dataset(tmp_path))
    file = Path(wrote.removeprefix("wrote "))
    assert following.endswith(f"vlatrack run experiments/{file.name}")
    spec = load_spec(file)
    splits = open_splits(spec, TokenStore(tmp_path / "store"))
    check_data(spec, splits, build_norm_stats(spec, splits["train"]))
    assert len(splits["train"].episodes) + len(splits["val_ind"].episodes) == len(splits["train"].episodes.table)


def test_numbers_that_never_change_are_named_in_the_experiment(tmp_path: Path) -> None:
    shutil.copytree(METAWORLD, tmp_path / "2026-11-28")  # which YAML takes for a date
    for table in (tmp_path / "2026-11-28" / "data").rglob("*.parquet"):
        rows = pq.read_table(table)
        action = np.stack(rows["action"].to_numpy())
        action[:, 3] = 1
        column = pa.array(list(action), rows.schema.field("action").type)
        pq.write_table(rows.set_column(rows.schema.get_field_index("action"), "action", column), table)
    run(".", "--data", str(tmp_path / "2026-11-28"))
    spec = load_spec(Path("experiments/2026-11-28.yaml"))
    assert (spec.name, spec.tokenizer.statistics.action_as_is) == ("2026-11-28", (3,))


def test_an_experiment_of_ones_own_is_not_overwritten(tmp_path: Path) -> None:
    run(".", "--data", str(METAWORLD))
    with pytest.raises(VlatrackError, match=r"metaworld-mini\.yaml: is there, and nothing was written"):
        run(".", "--data", str(METAWORLD))


def test_a_full_disk_leaves_no_half_of_an_experiment() -> None:
    """A limit on the size of files stands in for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(VlatrackError, match=r"metaworld-mini\.yaml: cannot be written \(File too large\)"):
            run(".", "--data", str(METAWORLD))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(Path("experiments").iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "rows.yaml"])
def test_what_is_no_dataset_of_episodes_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(VlatrackError, match=name):
        run(".", "--data", str(tmp_path / name))
    assert not Path("experiments").exists()

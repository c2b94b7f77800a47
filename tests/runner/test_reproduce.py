"""`vlatrack reproduce`: the same again, to the last digit; what is not the same is named."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import ENVIRONMENT, TOY
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import VlatrackError
from vlatrack.runner.archive import write_archive
from vlatrack.runner.comparison.recorded import RecordedManifest, Repository
from vlatrack.runner.git_state import git_state
from vlatrack.runner.reproduction.checkout import check_out, is_same, remove_checkout
from vlatrack.runner.reproduction.packages import make_environment, package_differences
from vlatrack.runner.reproduction.records import OTHER_PROCESSOR, Tolerance, compare_records
from vlatrack.runner.reproduction.reproduce import Reproduction, reproduce_run
from vlatrack.tracking.journal.history import last_start

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _child_finds_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def changed(run: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run with another manifest."""
    shutil.copytree(run, copy)
    content = json.loads((copy / "manifest.json").read_text())
    change(content)
    (copy / "manifest.json").write_text(json.dumps(content))
    return copy


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_run_is_repeated_to_the_last_digit_and_another_package_is_named(finished_run: Path, tmp_path: Path) -> None:
    def age(manifest: dict[str, Any]) -> None:
        manifest["packages"]["numpy"] = "1.0"

    told: list[str] = []
    run = changed(finished_run, tmp_path / "other-numpy", age)
    result = reproduce_run(str(run), runs=tmp_path / "runs", steps=8, here=True, tell=told.append)
    assert result.records is not None
    assert (result.records.verdict, result.records.first, result.records.last_step) == ("identical", None, 8)
    assert result.records.values >= 50
    assert any(line.startswith("package numpy: 1.0 then, ") for line in told)
    assert result.run is not None
    start = last_start(result.run / "journal.jsonl")
    assert start is not None
    assert start.data["tags"]["vlatrack.reproduces"] == "other-numpy"
    assert json.loads((result.run / "reproduction.json").read_text())["records"]["verdict"] == "identical"


@pytest.mark.slow
def test_a_changed_line_of_the_users_code_is_named_and_the_recorded_one_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line was never committed: it is in the manifest alone when it has been changed again."""
    mine = tmp_path / "mine"
    mine.mkdir()
    source = mine / "my_source.py"
    source.write_text("import toy_source\n\n\nclass Mine(toy_source.ToySource):\n    shift = 0.0\n")
    spec = yaml.safe_load(TOY.read_text())
    for split in ("train", "val_ind", "val_ood"):
        spec["data"][split]["target"] = "my_source:Mine"
    spec["train"]["max_steps"] = 8
    (mine / "experiment.yaml").write_text(yaml.safe_dump(spec))
    git(mine, "init")
    git(mine, "add", ".")
    git(mine, "commit", "-m", "first")
    frame = "    def frames(self, episode, camera):\n        return super().frames(episode, camera).swapaxes(1, {})\n"
    source.write_text(source.read_text() + frame.format(1))
    monkeypatch.chdir(mine)
    command = [sys.executable, "-m", "vlatrack", "run", "experiment.yaml", "--runs", str(tmp_path / "runs")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": _places(mine)})
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    source.write_text(source.read_text().replace("(1, 1)", "(1, 2)"))
    monkeypatch.syspath_prepend(str(mine))

    def again(*, here: bool) -> Reproduction:
        return reproduce_run(str(run), runs=tmp_path / ("here" if here else "then"), here=here)

    then, now = again(here=False), again(here=True)
    assert then.records is not None
    assert now.records is not None
    assert any("my_source.py: -" in line or "my_source.py: +" in line for line in then.differences)
    assert (then.records.verdict, now.records.verdict) == ("identical", "differs")
    assert now.records.first is not None
    assert now.records.first.step == 4
    assert not git(mine, "worktree", "list").splitlines()[1:]


def _places(folder: Path) -> str:
    return os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])


def test_data_that_is_not_what_it_was_is_named_and_nothing_is_trained(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(finished_run, run)
    spec = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(spec.replace("options: {}", "options: {changed_frame: 7}", 1))
    done = CliRunner().invoke(app, ["reproduce", str(run), "--runs", str(tmp_path / "runs")], catch_exceptions=False)
    assert done.exit_code == 1
    assert "data.train: is not what it was (" in done.output
    assert "  episode 3 of train (toy): front: frame 7 differs\n" in done.output
    assert "episode 2" not in done.output
    assert "DIFFERS  the data is not what it was, so nothing was trained" in done.output
    assert not (tmp_path / "runs").exists()


def test_records_are_identical_within_a_tolerance_or_differ_from_a_step_on() -> None:
    recorded = {
        "train_closs": [(4, 2.0), (8, 1.0)],
        "val_ind_closs": [(8, NAN)],
        "train_step_time_s": [(4, 1.0)],
        "system/cpu_percent": [(4, 1.0)],
        "epoch": [(4, 0.5)],
    }
    timed = recorded | {"train_step_time_s": [(4, 9.0)], "system/cpu_percent": [(0, 3.0)], "epoch": [(4, 1.0)]}
    same = compare_records(recorded, timed, tolerance=0.0)
    assert (same.verdict, same.values, same.metrics, same.last_step) == ("identical", 3, 2, 8)
    near = compare_records(recorded, recorded | {"train_closs": [(4, 2.001), (8, 1.0)]}, tolerance=1e-3)
    assert (near.verdict, round(near.largest, 6)) == ("within tolerance", 0.0005)
    far = compare_records(recorded, recorded | {"train_closs": [(4, 2.0001), (8, 1.1)]}, tolerance=1e-3)
    assert far.first is not None
    assert (far.verdict, far.first.step, far.first.recorded, far.first.now) == ("differs", 8, 1.0, 1.1)
    for lost in ({"train_closs": [(4, 2.0)]}, {"train_closs": [(4, 2.0), (8, NAN)]}, {"val_ind_closs": [(8, INF)]}):
        assert compare_records(recorded, recorded | lost, tolerance=0.5).verdict == "differs"


def test_of_a_quick_check_its_last_evaluation_counts_only_if_both_have_it() -> None:
    recorded = {"train_closs": [(4, 2.0), (8, 1.0)], "val_ind_closs": [(8, 1.0)]}
    quick = {"train_closs": [(4, 2.0), (6, 1.7)], "val_ind_closs": [(6, 1.5)]}
    found = compare_records(recorded, quick, tolerance=0.0, up_to=6)
    assert (found.verdict, found.values, found.last_step) == ("identical", 1, 4)
    assert compare_records(recorded, {"val_ind_closs": [(6, 1.5)]}, tolerance=0.0, up_to=6).verdict == "differs"


def test_the_tolerance_follows_the_hardware() -> None:
    cpu = {"cpu": "Xeon", "threads": "2", "gpus": "none"}
    gpu = cpu | {"gpus": "H100"}
    assert Tolerance.of(cpu, cpu).relative == 0.0
    assert Tolerance.of(cpu, cpu | {"threads": "1"}).relative == OTHER_PROCESSOR
    assert Tolerance.of(gpu, gpu).relative > 0
    assert "GPU H100 then, none now" in Tolerance.of(gpu, cpu).why


def test_packages_that_differ_are_named_by_any_spelling() -> None:
    recorded = {"Foo.Bar": "1.0", "numpy": "2.0", "gone": "3", "vlatrack": "0.1"}
    here = {"foo-bar": "1.0", "numpy": "2.1", "new": "1"}
    assert package_differences(recorded, here) == {"numpy": ("2.0", "2.1"), "gone": ("3", None)}


@pytest.mark.parametrize("package", [("--pre", "1.0"), ("numpy", "1.0 --pre"), ("a/b", "1"), ("-r", "1")])
def test_a_package_of_a_manifest_cannot_be_an_option_of_pip(tmp_path: Path, package: tuple[str, str]) -> None:
    with pytest.raises(VlatrackError, match="is no package"):
        make_environment(tmp_path / "environment", dict([package]))


def wheel(folder: Path, version: str, module: str) -> None:
    """A package of one module, as pip installs it without any index."""
    folder.mkdir(exist_ok=True)
    told, info = f"Metadata-Version: 2.1\nName: toy-scale\nVersion: {version}\n", f"toy_scale-{version}.dist-info"
    with zipfile.ZipFile(folder / f"toy_scale-{version}-py3-none-any.whl", "w") as packed:
        packed.writestr("toy_scale.py", module)
        packed.writestr(f"{info}/METADATA", told)
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place in which pip finds packages."""
    for version, scale in (("1.0", 1), ("2.0", 2)):
        wheel(tmp_path / "wheels", version, f"scale = {scale}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


@pytest.mark.slow
def test_a_recorded_version_is_installed_and_one_that_is_not_to_be_had_is_one_line(
    wheels: Path, tmp_path: Path
) -> None:
    python, installed = make_environment(tmp_path / "environment", {"toy-scale": "1.0"})
    told = subprocess.run([python, "-c", "import toy_scale, numpy; print(toy_scale.scale)"], capture_output=True)
    assert told.stdout == b"1\n"
    assert (installed / "toy_scale.py").is_file()
    with pytest.raises(VlatrackError, match=r"packages cannot be installed \(.*toy-scale==3\.0\); --here") as caught:
        make_environment(tmp_path / "other", {"toy-scale": "3.0"})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_another_version_of_a_package_is_named_and_the_recorded_one_gives_the_same(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, site = tmp_path / "mine", tmp_path / "site"
    mine.mkdir()
    turned = (
        "    def frames(self, episode, camera):\n        return super().frames(episode, camera) // toy_scale.scale\n"
    )
    (mine / "my_source.py").write_text(
        f"import toy_scale\nimport toy_source\n\n\nclass Mine(toy_source.ToySource):\n{turned}"
    )
    spec = yaml.safe_load(TOY.read_text())
    for split in ("train", "val_ind", "val_ood"):
        spec["data"][split]["target"] = "my_source:Mine"
    spec["train"]["max_steps"] = 8
    (mine / "experiment.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(mine)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), _places(mine)]))

    def install(version: str) -> None:
        shutil.rmtree(site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), f"toy-scale=={version}"]
        subprocess.run(command, check=True, capture_output=True)

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "vlatrack", *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    install("1.0")
    call("run", "experiment.yaml", "--runs", str(tmp_path / "runs"))
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    install("2.0")
    told = call("reproduce", str(run), "--runs", str(tmp_path / "again"))
    assert "package toy-scale: 1.0 then, 2.0 now; the recorded ones are used" in told
    assert "IDENTICAL" in told.splitlines()[-1]
    (again,) = (tmp_path / "again" / "toy").iterdir()
    assert json.loads((again / "manifest.json").read_text())["packages"]["toy-scale"] == "1.0"


def repository(**changes: Any) -> Repository:
    known: dict[str, Any] = {"root": None, "remote": None, "commit": "0" * 40, "branch": None, "diff": ""}
    known |= {"diff_cut": False, "untracked": {}, "untracked_left_out": [], "submodules": {}}
    return Repository(**known | changes)


def test_code_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "a.py").write_text("1\n")
    git(clone, "init")
    git(clone, "add", ".")
    git(clone, "commit", "-m", "first")
    head = git(clone, "rev-parse", "HEAD")
    outside = {"../outside.py": "x"}
    for changes, where, told in (
        ({"commit": "--force"}, clone, "the manifest's commit is none"),
        ({"remote": "https://example.org/x.git"}, None, "is not in a clone here; git clone https://example.org/x.git"),
        ({"commit": head, "diff": "x", "diff_cut": True}, clone, "was too long to be recorded"),
        ({"commit": head, "diff": '+KEY = "***"'}, clone, "held what looks like a key"),
        ({"commit": head, "diff": "no diff"}, clone, "the recorded changes do not apply"),
        ({"commit": head, "untracked": outside}, clone, "which lies outside"),
    ):
        with pytest.raises(VlatrackError, match=told) as caught:
            check_out("code", repository(**changes), where, tmp_path / f"tree-{len(list(tmp_path.iterdir()))}")
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "outside.py").exists()


def test_submodules_and_binary_changes_are_checked_out_as_they_were(tmp_path: Path) -> None:
    module, clone = tmp_path / "module", tmp_path / "clone"
    for folder, text in ((module, b"old"), (clone, b"\0\1\2")):
        folder.mkdir()
        (folder / "file").write_bytes(text)
        git(folder, "init")
        git(folder, "add", ".")
        git(folder, "commit", "-m", "first")
    git(clone, "-c", "protocol.file.allow=always", "submodule", "add", str(module), "inside/module")
    git(clone, "commit", "-m", "second")
    (clone / "file").write_bytes(b"\0\3\4")
    (clone / "notes.bin").write_bytes(b"\0")
    state = git_state(clone)
    assert state is not None
    recorded = RecordedManifest.of({"git": state.to_json()}).repositories["vlatrack"]
    assert is_same(recorded, state)
    (clone / "inside" / "module" / "file").write_bytes(b"new")
    git(clone / "inside" / "module", "commit", "-am", "third")
    now = git_state(clone)
    assert not is_same(recorded, now)
    check_out("code", recorded, clone, tmp_path / "tree")
    assert (tmp_path / "tree" / "file").read_bytes() == b"\0\3\4"
    assert (tmp_path / "tree" / "inside" / "module" / "file").read_bytes() == b"old"
    remove_checkout(recorded, clone, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    for folder in (clone, clone / "inside" / "module"):
        assert len(git(folder, "worktree", "list").splitlines()) == 1
    lost = repository(commit=recorded.commit, submodules={"inside/module": "1" * 40})
    with pytest.raises(
        VlatrackError, match=r"commit 111111111111 of its submodule inside/module is not in .*; git sub"
    ):
        check_out("code", lost, clone, tmp_path / "other")


def test_what_cannot_be_repeated_is_one_line(finished_run: Path, tmp_path: Path) -> None:
    def dirty(manifest: dict[str, Any]) -> None:
        manifest["git"] |= {"dirty": True, "diff": "diff --git a/x b/x\n"}

    run = changed(finished_run, tmp_path / "dirty", dirty)
    write_archive(run, tmp_path / "dirty.tar.gz")
    with pytest.raises(VlatrackError, match="holds uncommitted code of vlatrack, which would run as you"):
        reproduce_run(str(tmp_path / "dirty.tar.gz"), runs=tmp_path / "runs")
    (run / "manifest.json").unlink()
    with pytest.raises(VlatrackError, match=r"has no manifest\.json"):
        reproduce_run(str(run), runs=tmp_path / "runs")
    (run / "spec.yaml").unlink()
    with pytest.raises(VlatrackError, match=r"has no spec\.yaml"):
        reproduce_run(str(run), runs=tmp_path / "runs")
    shutil.copytree(finished_run, tmp_path / "lost")
    spec = yaml.safe_load((tmp_path / "lost" / "spec.yaml").read_text())
    spec["data"]["train"] = {"kind": "lerobot", "path": str(tmp_path / "gone")}
    (tmp_path / "lost" / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(VlatrackError, match="gone"):
        reproduce_run(str(tmp_path / "lost"), runs=tmp_path / "runs")


def test_a_manifest_of_vlatrack_0_1_0_is_read() -> None:
    old = {"vlatrack": "0.1.0", "git": {"commit": "0" * 40, "dirty": False, "diff": ""}, "command": ["vlatrack"]}
    read = RecordedManifest.of(old | {"packages": {"python": "3.11.7", "torch": "2.13.0"}, "data": {}})
    assert (read.format, read.python, dict(read.packages)) == (1, "3.11.7", {"torch": "2.13.0"})
    assert read.repositories["vlatrack"].root is None

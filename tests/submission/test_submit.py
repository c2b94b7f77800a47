"""`vlatrack submit`: what reaches Slurm, and what is refused before it does."""

import stat
import subprocess
from pathlib import Path

import pytest

from vlatrack.errors import SubmitError
from vlatrack.spec.load import load_spec
from vlatrack.submission.clusters import script
from vlatrack.submission.folder import JobFolder, Order
from vlatrack.submission.resources import Resources, parse_minutes

MUCH = Resources(
    nodes=2,
    gpus=8,
    processes=8,
    cpus_per_task=12,
    mem_gb=500,
    minutes=2880,
    partition="gpu",
    account="vla",
    qos="long",
    constraint="a100|h100",
    setup=("module load cuda",),
    more={"reservation": "it's ours"},
)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("8h", 480),
        ("2d", 2880),
        ("1.5h", 90),
        ("90:30", 91),
        ("8:00:00", 480),
        ("2-12", 3600),
        ("1-0:30", 1470),
    ],
)
def test_a_time_limit_may_be_written_as_slurm_does_or_with_a_unit(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "0", "0h", "-5", "1:2:3:4", "8 hours"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SubmitError, match="--time"):
        parse_minutes(text)


def test_the_script_asks_for_what_was_asked_for_and_is_valid_shell(tmp_path: Path) -> None:
    lines = script("slurm", JobFolder(tmp_path / "a b"), MUCH, name="toy", grace_s=25).splitlines()
    wanted = {
        *("--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--cpus-per-task=12", "--mem=500GB", "--time=2880"),
        *("--partition=gpu", "--account=vla", "--qos=long", "--constraint='a100|h100'", "--job-name=toy", "--requeue"),
        *("--signal=USR1@120", "--open-mode=append", """--reservation='it'"'"'s ours'"""),
        f"--output='{tmp_path}/a b/%j_0_log.out'",
    }
    assert {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")} == wanted
    assert lines.index("module load cuda") < next(n for n, line in enumerate(lines) if line.startswith("srun "))
    assert "--cpus-per-task=12" in lines[-1].split()
    subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=True)


@pytest.mark.parametrize(
    "given", [{"constraint": "a100\nrm -rf /"}, {"more": {"x\n": "y"}}, {"more": {"comment": "\x1b"}}]
)
def test_no_line_can_be_smuggled_into_the_script(given: dict) -> None:
    with pytest.raises(SubmitError):
        Resources(**given)


def test_sbatch_gets_one_script_and_the_job_its_private_folder(submit, sbatch, tmp_path: Path) -> None:
    kept = sbatch()
    done = submit("optim.lr=0.001", "--time", "8h", "--gpus", "1")
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs" / "jobs").iterdir()
    log = f"runs/jobs/{folder.name}/4711_0_log.out"
    last = f"SUBMITTED job 4711 (slurm) · log: {log} · end it: scancel 4711"
    assert done.output.splitlines()[-1] == last
    assert len((kept / "arguments").read_text().split()) == 1
    assert (folder / "4711_submission.sh").read_text() == (kept / "script.sh").read_text()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_spec(folder / "experiment.yaml").optim.lr == 0.001
    order = JobFolder(folder).order()
    assert (order.overrides, order.directory, order.resume) == (("optim.lr=0.001",), tmp_path, None)
    assert (folder / "4711_submitted.pkl").stat().st_size < 1000  # the path of the folder, and nothing else


def test_without_slurm_one_line_says_what_else_there_is(submit, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = submit("--time", "8h")
    assert isinstance(done.exception, SubmitError)
    assert str(done.exception) == "sbatch: not found, so there is no Slurm here; --cluster local trains on this machine"
    assert not list((tmp_path / "runs" / "jobs").iterdir())


def test_what_sbatch_says_against_a_job_is_told_and_nothing_is_left(submit, sbatch, tmp_path: Path) -> None:
    sbatch("echo 'sbatch: error: invalid partition specified: gpx' >&2; exit 1")
    done = submit("--time", "8h", "--partition", "gpx")
    assert str(done.exception) == "slurm has refused the job: sbatch: error: invalid partition specified: gpx"
    assert not list((tmp_path / "runs" / "jobs").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train.tasks=[fly]", "--time", "8h"], "fly"),
        (["optim.lr=fast", "--time", "8h"], "optim.lr"),
        (
            ["--time", "8h", "--nodes", "4", "--processes", "8"],
            "train.batch_size: 16 samples cannot be dealt out to 32",
        ),
        ([], "--time: say how long the job may run"),
        (["--time", "2"], "--time: 2 minutes; a run needs 3 at least"),
        (["--cluster", "local", "--partition", "gpu", "--nodes", "2"], "--partition, --nodes: --cluster local is this"),
        (["--time", "8h", "--sbatch", "exclusive"], "write it as NAME=VALUE"),
        (["--runs", "50%", "--time", "8h"], "Slurm gives % a meaning of its own"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_now(submit, sbatch, tmp_path: Path, words, said: str) -> None:
    kept = sbatch()
    done = submit(*words)
    assert said in str(done.exception), done.output
    assert not (kept / "arguments").exists()
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_makes_nothing(submit, tmp_path: Path) -> None:
    done = submit("--time", "8h", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("#!/bin/bash\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("inner", ["runs", "runs/jobs"])
def test_a_folder_in_which_others_may_exchange_files_holds_no_job(tmp_path: Path, inner: str) -> None:
    (tmp_path / "runs" / "jobs").mkdir(parents=True)
    (tmp_path / inner).chmod(0o775)
    with pytest.raises(SubmitError, match="others may write here"):
        JobFolder.planned(tmp_path / "runs", "toy")
    (tmp_path / inner).chmod(0o1775)  # then nobody renames what belongs to somebody else
    JobFolder.planned(tmp_path / "runs", "toy")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 2}', '{"directory": "/", "runs": "/", "command": [], "setup": "rm"}']
)
def test_a_damaged_order_is_one_line(tmp_path: Path, content: str) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.create(Order(directory=tmp_path, runs=tmp_path, command=()), "")
    (folder.path / "order.json").write_text(content)
    with pytest.raises(SubmitError, match=r"order\.json: cannot be read") as raised:
        folder.order()
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("")
    with pytest.raises(SubmitError, match="cannot be written"):
        JobFolder(tmp_path / "jobs" / "toy").create(Order(directory=tmp_path, runs=tmp_path, command=()), "")

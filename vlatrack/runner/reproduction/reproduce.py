"""Run a recorded run again, from its own code, packages and data, and compare what came of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatrack.errors import DataError, RunError, SpecError
from vlatrack.runner.archive import is_archive
from vlatrack.runner.comparison.differences import line_differences
from vlatrack.runner.comparison.finding import is_of_tracker, run_folder
from vlatrack.runner.comparison.recorded import History, RecordedManifest, RecordedRun, Repository
from vlatrack.runner.data_digests import FILE as DATA_DIGESTS
from vlatrack.runner.data_digests import read_data_digests, told_differences
from vlatrack.runner.git_state import git_state
from vlatrack.runner.manifest import RECORDED_VARIABLES, describe_code
from vlatrack.runner.reproduction.checkout import check_out, is_same, local_repository, remove_checkout
from vlatrack.runner.reproduction.packages import make_environment, package_differences
from vlatrack.runner.reproduction.records import RecordComparison, Tolerance, compare_records
from vlatrack.runner.run import initial_policy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.journal.records import JournalDamage, Kind, read_records
from vlatrack.tracking.privacy import write_private

REPRODUCES = "VLATRACK_REPRODUCES"
"""Tells the new run which one it repeats; its tag vlatrack.reproduces says it to the trackers."""
RESULT = "reproduction.json"
_OF_THIS_MACHINE = ("CUDA_VISIBLE_DEVICES", "MUJOCO_GL", "PYOPENGL_PLATFORM")
_MOST_LINES = 20


@dataclass(frozen=True)
class Reproduction:
    """What came of it. Without `run`, nothing was trained, because the data is not what it was."""

    of: str
    run: Path | None
    differences: tuple[str, ...]  # of code, packages and data, a line each
    records: RecordComparison | None
    tolerance: Tolerance | None

    @property
    def reproduced(self) -> bool:
        return self.records is not None and self.records.verdict != "differs"


@dataclass(frozen=True)
class _Setup:
    """How the run is started: the Python, where it finds code, and what made the code and packages differ."""

    python: Path
    code: tuple[Path, ...]
    differences: tuple[str, ...]
    is_present: bool  # whether the vlatrack that runs is this one


def reproduce_run(
    word: str,
    *,
    runs: Path = Path("runs"),
    steps: int | None = None,
    here: bool = False,
    trust_code: bool = False,
    track: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Repeat a run in a new directory below ``runs``, and compare the records of the two.

    Args:
        word: a run directory, an archive, or an id; see ``run_folder``.
        steps: train so many steps only, and compare the records up to there.
        here: use the code and packages that are here; how they differ is told.
        trust_code: uncommitted code that an archive holds may run.
        track: deliver the new run to the trackers of its spec, too.
        tell: called with a line for each thing that is done or found.

    Raises:
        VlatrackError: there is no such run, its data is missing, or its code or packages cannot be had.
    """
    with run_folder(word, runs) as folder, ExitStack() as stack:
        recorded = RecordedRun.read(folder, place=word)
        if recorded.damaged is not None:
            tell(f"{recorded.damaged}; what the run may have logged there does not count")
        spec = _spec_of(folder, recorded)
        if changed := _data_differences(spec, recorded.manifest, folder):
            for line in changed:
                tell(line)
            return Reproduction(recorded.name, None, tuple(changed), None, None)
        tell("data and statistics are what they were")
        _check_trust(word, recorded.manifest, here=here, trust_code=trust_code)
        setup = stack.enter_context(_setup(recorded.manifest, runs, here=here))
        for line in setup.differences:
            tell(line)
        spec_file = folder / "spec.yaml"
        if setup.is_present:  # an earlier version may have written it in another form
            spec_file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "spec.yaml")
            write_private(spec_file, dump_spec(spec))
        new = _train(spec_file, recorded, setup, runs, steps=steps, track=track, spec=spec)
        again = RecordedRun.read(new)
        told = recorded.manifest.hardware, again.manifest.hardware
        tolerance = Tolerance.of(*told)
        records = compare_records(
            _whole_history(folder),
            _whole_history(new),
            tolerance=tolerance.relative,
            up_to=steps,
            is_whole=recorded.damaged is None,
        )
        result = Reproduction(recorded.name, new, setup.differences, records, tolerance)
        _write_result(new, result)
        return result


def _whole_history(run: Path) -> History:
    journal = run / "journal.jsonl"
    return metric_history(journal, damage=JournalDamage(journal))


def _spec_of(folder: Path, recorded: RecordedRun) -> ExperimentSpec:
    if not (folder / "spec.yaml").is_file():
        raise SpecError(f"{recorded.place}: has no spec.yaml, so it is no training of vlatrack and cannot be repeated")
    if not recorded.manifest.format:
        raise DataError(f"{recorded.place}: has no manifest.json, so nobody knows what it was made of")
    if not recorded.history:
        raise DataError(f"{recorded.place}: has logged no metric, so there is nothing to compare with")
    return load_spec(folder / "spec.yaml", stored=True)


def _data_differences(spec: ExperimentSpec, manifest: RecordedManifest, run: Path) -> list[str]:
    """What is not as it was recorded, with the files, episodes and frames; DataError if the data is missing."""
    from vlatrack.builders.experiment import Experiment

    experiment, recorded = Experiment.new(spec, initial_policy(spec)), read_data_digests(run / DATA_DIGESTS)
    changed = list[str]()
    for name, digest in experiment.fingerprints.items():
        then = manifest.fingerprints.get(name, digest)
        if then != digest:
            changed.append(f"{name}: is not what it was ({then[:12]} then, {digest[:12]} now)")
            split = name.removeprefix("data.")
            if split in experiment.splits:
                changed += [f"  {line}" for line in told_differences(recorded, split, experiment.splits[split])]
    now = json.loads(json.dumps(experiment.norm_stats.to_json()))
    if manifest.statistics and now != manifest.statistics:
        changed.append("statistics: the ranges of actions or states are not what they were")
    return changed


def _check_trust(word: str, manifest: RecordedManifest, *, here: bool, trust_code: bool) -> None:
    is_foreign = is_of_tracker(word) or (Path(word).is_file() and is_archive(Path(word)))
    holding = [name for name, r in manifest.repositories.items() if r.diff or r.untracked]
    if is_foreign and holding and not here and not trust_code:
        raise SpecError(
            f"{word}: holds uncommitted code of {' and '.join(holding)}, which would run as you; look at it in "
            "manifest.json, then add --trust-code, or use --here"
        )


@contextmanager
def _setup(manifest: RecordedManifest, runs: Path, *, here: bool) -> Iterator[_Setup]:
    """Code and packages as they were recorded, or those that are here; removed afterwards."""
    present = RecordedManifest.of({"format": 2, **describe_code(manifest.command, runs=runs)})
    directory = Path(manifest.directory or ".")
    code = [place for place in (directory, Path.cwd()) if place.is_dir()]
    if "vlatrack" in present.repositories:  # else it is an installed package, beside all others
        code.insert(0, Path(__file__).parents[3])
    differences, is_present = list[str](), True
    with tempfile.TemporaryDirectory(prefix="vlatrack-reproduce-") as temporary, ExitStack() as stack:
        for name, repository in manifest.repositories.items():
            clone = local_repository(repository)
            state = None if clone is None else git_state(clone, leave_out=runs.resolve())
            if is_same(repository, state):
                continue
            differences += _code_lines(name, repository, present.repositories.get(name))
            if not here:
                folder = Path(temporary, name)
                if clone is not None:  # before it is whole: one that fails half-way is removed as well
                    stack.callback(remove_checkout, repository, clone, folder)
                check_out(name, repository, clone, folder)
                code = [folder, *_place_within(folder, repository, directory), *code]
                is_present = is_present and name != "vlatrack"
        packages = package_differences(manifest.packages, present.packages)
        differences += [f"package {name}: {then} then, {now or 'none'} now" for name, (then, now) in packages.items()]
        if manifest.python != present.python:
            differences.append(f"Python: {manifest.python} then, {present.python} now")
        python = Path(sys.executable)
        if packages and not here:
            wanted = {name: then for name, (then, _) in packages.items()}
            python, installed = make_environment(Path(temporary, "environment"), wanted)
            code.append(installed)  # before what PYTHONPATH has already
        used = "the present ones are used" if here else "the recorded ones are used"
        told = [f"{line}; {used}" if not line.startswith(("  ", "Python")) else line for line in differences]
        yield _Setup(python, tuple(code), tuple(told), is_present)


def _code_lines(name: str, then: Repository, now: Repository | None) -> list[str]:
    at = "unknown" if now is None else now.commit[:12]
    what = f"commit {then.commit[:12]} then, {at} now" if at != then.commit[:12] else "other uncommitted changes"
    lines = [
        f"  {line.replace('A  ', 'then ', 1) if line.startswith('A') else line.replace('B  ', 'now  ', 1)}"
        for line in line_differences(then, now)
    ]
    modules = then.submodules if now is None else dict(then.submodules.items() - now.submodules.items())
    lines += [f"  submodule {path}: commit {commit[:12]} then" for path, commit in modules.items()]
    if left_out := list(then.untracked_left_out):
        some = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        lines.append(f"  not recorded, since binary, large or named like a key: {some}")
    return [f"code of {name}: {what}", *lines[:_MOST_LINES]]


def _place_within(folder: Path, repository: Repository, directory: Path) -> list[Path]:
    """Where modules beside the experiment lie in the worktree: the directory in which the run was started."""
    root = Path(repository.root or "/")
    return [folder / directory.relative_to(root)] if directory.is_relative_to(root) and repository.root else []


def _train(
    spec_file: Path,
    recorded: RecordedRun,
    setup: _Setup,
    runs: Path,
    *,
    steps: int | None,
    track: bool,
    spec: ExperimentSpec,
) -> Path:
    """Run the spec in a process of its own, as the command line does; the directory of the new run."""
    overrides = [] if track else ["tracking.backends=[]", "tracking.figures=false"]
    if steps is not None:
        most = min(steps, spec.train.max_steps or steps)
        overrides.append(f"train.max_steps={most}")
    program = ["-m", "vlatrack"]
    if recorded.manifest.processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(recorded.manifest.processes)]
        program = [*launch, *program]
    folder = runs / spec.name
    before = set(folder.glob("*/journal.jsonl"))
    command = [str(setup.python), *program, "run", str(spec_file), "--runs", str(runs), *overrides]
    done = subprocess.run(command, env=_environment(recorded, setup), check=False)
    new = sorted(set(folder.glob("*/journal.jsonl")) - before)
    ours = [file for file in new if _repeats(file, recorded.name)] or new
    if done.returncode != 0 or not ours:
        raise RunError(f"{recorded.place}: its repetition ended with exit code {done.returncode}; its output says why")
    return ours[-1].parent


def _environment(recorded: RecordedRun, setup: _Setup) -> dict[str, str]:
    """That of this process, with the code first, and of the variables that may change a result those of the run."""
    environment = dict(os.environ)
    if recorded.manifest.format > 1:
        for name in RECORDED_VARIABLES:
            if name not in _OF_THIS_MACHINE:
                environment.pop(name, None)
        environment |= {n: v for n, v in recorded.manifest.environment.items() if n in RECORDED_VARIABLES}
        environment |= {n: os.environ[n] for n in _OF_THIS_MACHINE if n in os.environ}
    places = [*map(str, setup.code), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Without the working directory in front, in which another vlatrack may lie.
    return environment | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1", REPRODUCES: recorded.name}


def _repeats(journal: Path, name: str) -> bool:
    start = next(iter(read_records(journal)), None)
    return start is not None and start.kind == Kind.START and start.data["tags"].get("vlatrack.reproduces") == name


def _write_result(run: Path, result: Reproduction) -> None:
    content: Mapping[str, Any] = {
        "of": result.of,
        "differences": list(result.differences),
        "records": None if result.records is None else asdict(result.records),
        "tolerance": None if result.tolerance is None else asdict(result.tolerance),
    }
    write_private(run / RESULT, json.dumps(content, indent=1) + "\n")

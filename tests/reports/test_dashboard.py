import http.client
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request

import pytest
from dashboard_server import served
from launching import running

from vlatrack import start_run
from vlatrack.cli.ui import ui
from vlatrack.errors import TrackerError
from vlatrack.tracking.run import TrackedRun

HOSTILE = "<script>alert(1)</script>"


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as response:
        return json.load(response)


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(Request(address, headers=headers), timeout=30) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def logged_run(runs: Path, experiment: str = "toy", steps: int = 30, **params: Any) -> TrackedRun:
    run = start_run(experiment, runs=runs, backends=[], params={"train.epochs": 4, "train.batch_size": 8, **params})
    for step in range(1, steps + 1):
        run.log({"train_loss": 1 / step, "train_closs": 2 / step, "epoch": step / 20}, step=step)
    run.log({"val_ind_loss": 0.5, "val_ind_loss_ct": 0.25}, step=steps)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_run_is_listed_with_what_its_journal_says_now(runs: Path, eventually: Callable[..., None]) -> None:
    with served(runs) as address, logged_run(runs) as run:
        eventually(lambda: len(get(f"{address}/api/runs")["rows"]) == 1)
        (row,) = get(f"{address}/api/runs")["rows"]
        assert (row["id"], row["status"], row["step"]) == (f"toy/{run.run_id}", "RUNNING", 30)
        assert (row["total_steps"], row["epochs"], row["epoch"]) == (80, 4, 1.5)
        assert row["losses"]["train_closs"] == 2 / 30
        run.log({"train_loss": 0.01}, step=31)
        eventually(lambda: get(f"{address}/api/runs")["rows"][0]["losses"]["train_loss"] == 0.01)
        run.finish("FAILED", reason="no more light")
        eventually(lambda: get(f"{address}/api/runs")["rows"][0]["reason"] == "no more light")
        run.path.rename(runs / "elsewhere")
        eventually(lambda: get(f"{address}/api/runs")["rows"] == [])


def test_changes_are_pushed_without_being_asked_for(runs: Path) -> None:
    with (
        served(runs) as address,
        logged_run(runs) as run,
        urllib.request.urlopen(f"{address}/api/changes", timeout=30) as stream,
    ):
        changes = (json.loads(line[6:])["rows"] for line in stream if line.startswith(b"data: "))
        steps = (row["step"] for rows in changes for row in rows)
        assert 30 in steps
        run.log({"train_loss": 0.5}, step=77)
        assert 77 in steps


def changes_after(address: str, mark: str) -> dict[str, Any]:
    """The first message of the stream for who knows what was there at this mark, with its own mark."""
    asked = Request(f"{address}/api/changes", headers={"Last-Event-ID": mark})
    with urllib.request.urlopen(asked, timeout=30) as stream:
        lines = (line.decode() for line in stream)
        mark = next(line for line in lines if line.startswith("id: "))[4:].strip()
        return {"mark": mark, **json.loads(next(lines).removeprefix("data: "))}


def test_who_was_away_gets_what_was_missed_and_everything_of_a_server_that_was_started_again(
    runs: Path, eventually: Callable[..., None]
) -> None:
    with logged_run(runs) as one, logged_run(runs) as other:
        with served(runs) as address:
            eventually(lambda: len(get(f"{address}/api/runs")["rows"]) == 2)
            mark = get(f"{address}/api/runs")["mark"]
            one.log({"train_loss": 0.5}, step=99)
            missed = changes_after(address, mark)
            assert [(row["name"], row["step"]) for row in missed["rows"]] == [(one.path.name, 99)]
        with served(runs) as address:
            eventually(lambda: get(f"{address}/api/runs")["complete"])
            anew = changes_after(address, missed["mark"])
            assert anew["life"] != missed["life"]
            assert {row["name"] for row in anew["rows"]} == {one.path.name, other.path.name}


def test_the_page_of_a_run_has_its_lines_its_results_and_its_files(runs: Path, eventually: Callable[..., None]) -> None:
    with logged_run(runs) as run:
        (run.path / "spec.yaml").write_text("name: toy\n")
        run.event("checkpoint", {"step": 20, "name": "step-00000020"})
    with served(runs) as address:
        page = f"{address}/api/run/toy/{run.run_id}"
        eventually(lambda: status_of(page) == 200)
        content = get(page)
        line = content["lines"]["lines"]["train_loss"]
        assert content["lines"]["axes"][line["axis"]]["step"] == list(range(1, 31))
        assert line["values"][1] == 0.5
        (loss,) = [row for row in content["summary"] if row["metric"] == "loss"]
        assert loss["splits"]["train"]["best"] == {"step": 30, "value": 0.0333333}
        assert [event["name"] for event in content["events"]] == ["start", "checkpoint", "finish"]
        assert content["spec"] == "name: toy\n"
        assert {"path": "spec.yaml", "bytes": 10} in content["files"]
        assert [group["name"] for group in content["groups"]] == ["losses", "more"]
        newer = get(f"{page}/lines?since=29")
        line = newer["lines"]["lines"]["train_loss"]
        assert newer["lines"]["axes"][line["axis"]]["step"] == [29, 30]
        sparks = get(f"{address}/api/sparks?run=toy/{run.run_id}&run=toy/none")
        assert list(sparks) == [f"toy/{run.run_id}"]


def test_a_stretch_of_a_long_run_is_shown_with_every_value(runs: Path, eventually: Callable[..., None]) -> None:
    values = [float(step % 97) for step in range(9000)]
    with start_run("toy", runs=runs, backends=[]) as run:
        for step, value in enumerate(values):
            run.log({"train_loss": value, "train_lr": 0.1}, step=step)
    with served(runs) as address:
        page = f"{address}/api/run/toy/{run.run_id}"
        eventually(lambda: status_of(page) == 200)
        content = get(page)["lines"]
        assert len(content["lines"]["train_loss"]["values"]) < 2000
        found = get(f"{page}/zoom?from=4000&to=4999")["lines"]
        line = found["lines"]["train_loss"]
        assert found["axes"][line["axis"]]["step"] == list(range(4000, 5000))
        assert line["values"] == values[4000:5000]
        more = get(f"{page}/zoom?from=1000&to=Infinity")["lines"]["lines"]["train_loss"]["values"]
        assert (min(more), max(more)) == (0, 96)
        assert len(more) < 2000
        assert get(f"{page}/zoom?from=20000")["lines"]["lines"] == {}
        assert status_of(f"{page}/zoom?from=nan") == 400
        assert status_of(f"{address}/api/run/toy/none/zoom?from=1&to=2") == 404


def test_runs_are_compared_by_their_lines_and_by_the_settings_that_differ(
    runs: Path, eventually: Callable[..., None]
) -> None:
    with logged_run(runs, seed=1) as one, logged_run(runs, steps=40, seed=2) as other:
        pass
    with served(runs) as address:
        asked = f"{address}/api/compare?run=toy/{one.run_id}&run=toy/{other.run_id}"
        eventually(lambda: status_of(asked) == 200)
        content = get(asked)
        assert [entry["row"]["id"] for entry in content["runs"]] == [f"toy/{one.run_id}", f"toy/{other.run_id}"]
        assert content["differences"] == [{"path": "seed", "values": [1, 2], "decides": True}]
        best = {row["metric"]: [cell["best"]["step"] for cell in row["cells"]] for row in content["best"]}
        assert best["train_loss"] == [30, 40]
        assert status_of(f"{asked}&run=toy/none") == 404


def test_one_damaged_run_does_not_hide_the_others(runs: Path, eventually: Callable[..., None]) -> None:
    with logged_run(runs) as run:
        pass
    journal = run.path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"{damaged\n", *lines[6:]]))
    broken = runs / "toy" / "20260101-000000-0000"
    broken.mkdir()
    (broken / "journal.jsonl").mkdir()
    foreign = runs / "toy" / "20260101-000000-0001"
    foreign.mkdir()
    foreign_start = {"name": HOSTILE, "experiment": HOSTILE, "params": {HOSTILE: HOSTILE}, "tags": {}}
    record = {"v": 1, "run": "a", "writer": "w", "seq": 0, "t_ms": 1, "kind": "start", "step": None}
    (foreign / "journal.jsonl").write_text(json.dumps(record | {"data": foreign_start}) + "\n")
    (foreign / "delivery").mkdir()
    (foreign / "delivery" / "backends.json").write_text("[[[")
    with served(runs) as address:
        eventually(lambda: len(get(f"{address}/api/runs")["rows"]) == 2)
        rows = {row["id"]: row for row in get(f"{address}/api/runs")["rows"]}
        assert rows[f"toy/{run.run_id}"]["damaged_lines"] == 1
        assert rows[f"toy/{run.run_id}"]["status"] == "FINISHED"
        assert rows["toy/20260101-000000-0001"]["status"] == "UNREADABLE"
        content = get(f"{address}/api/run/toy/{run.run_id}")
        assert content["damaged"] == "journal.jsonl, line 6 is damaged (left out)"
        assert len(content["lines"]["lines"]["train_loss"]["values"]) == 29


def test_losses_that_are_not_finite_leave_valid_json(runs: Path, eventually: Callable[..., None]) -> None:
    with start_run("toy", runs=runs, backends=[]) as run:
        run.log({"train_loss": 1.0}, step=1)
        run.log({"train_loss": float("nan")}, step=2)
    with served(runs) as address:
        eventually(lambda: len(get(f"{address}/api/runs")["rows"]) == 1)
        assert get(f"{address}/api/runs")["rows"][0]["losses"]["train_loss"] == "nan"
        line = get(f"{address}/api/run/toy/{run.run_id}")["lines"]["lines"]["train_loss"]
        assert (line["values"], line["bad"], line["bad_count"]) == ([1.0], [2], 1)


def test_no_address_leads_out_of_a_run(runs: Path, tmp_path: Path, eventually: Callable[..., None]) -> None:
    (tmp_path / "secret.txt").write_text("for nobody")
    with logged_run(runs) as run:
        (run.path / "link.txt").symlink_to(tmp_path / "secret.txt")
        (run.path / "page.html").write_text("<script>top.location</script>")
        (run.path / "table.csv").write_text("a,b\n")
    with served(runs) as address:
        files = f"{address}/files/toy/{run.run_id}"
        eventually(lambda: status_of(f"{files}/table.csv") == 200)
        host = address.removeprefix("http://")
        outside = ("../../../secret.txt", "..%2f..%2f..%2fsecret.txt", "/etc/passwd", "%2fetc%2fpasswd")
        for path in (*outside, "link.txt", ""):
            connection = http.client.HTTPConnection(host, timeout=30)
            connection.request("GET", f"/files/toy/{run.run_id}/{path}")  # urllib would tidy the path up
            response = connection.getresponse()
            assert response.status == 404, path
            assert b"nobody" not in response.read()
            connection.close()
        for path in ("/static/../app.py", "/static/..%2f..%2frun_rows.py", "/files/..%2f..%2f/x/secret.txt"):
            assert status_of(address + path) == 404, path
        with urllib.request.urlopen(f"{files}/page.html") as response:  # it may be anybody's
            assert response.headers["content-security-policy"].startswith("sandbox allow-scripts;")
            assert response.headers["x-content-type-options"] == "nosniff"


def test_evaluations_show_what_can_be_read_and_videos_come_in_parts(
    runs: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    rate = {"episodes": 4, "successes": 1, "errors": 1, "success_rate": 0.25, "wilson": [0.04, 0.7]}
    with logged_run(runs) as run:
        for name, content in {
            "good": {"name": HOSTILE, "summary": {**rate, "tasks": {HOSTILE: rate, "push": {"wilson": [9, "x"]}}}},
            "odd": {"name": 3, "acting": [], "summary": {"tasks": "none", "successes": "many", "wilson": {}}},
            "begun": [],
        }.items():
            (run.path / "evaluation" / name / "videos").mkdir(parents=True)
            (run.path / "evaluation" / name / "evaluation.json").write_text(json.dumps(content))
        videos = run.path / "evaluation" / "good" / "videos"
        (videos / "success-0-a b%2f?.mp4").write_bytes(bytes(range(200)))
        (tmp_path / "other.mp4").touch()
        (videos / "link.mp4").symlink_to(tmp_path / "other.mp4")
    with served(runs) as address:
        page = f"{address}/api/run/toy/{run.run_id}"
        eventually(lambda: status_of(page) == 200)
        begun, good, odd = get(page)["evaluations"]
        nothing = {"successes": None, "episodes": None, "errors": None, "rate": None, "wilson": None}
        known = {"successes": 1, "episodes": 4, "errors": 1, "rate": 0.25, "wilson": [0.04, 0.7]}
        assert good["rates"] == [{"task": "all", **known}, {"task": HOSTILE, **known}, {"task": "push", **nothing}]
        assert (odd["name"], odd["rates"], begun["rates"]) == (None, [{"task": "all", **nothing}], [])
        assert good["videos"] == ["evaluation/good/videos/success-0-a b%2f?.mp4"]
        video = f"{address}/files/toy/{run.run_id}/{quote(good['videos'][0])}"
        with urllib.request.urlopen(Request(video, headers={"Range": "bytes=10-19"})) as response:
            assert (response.status, response.headers["content-type"]) == (206, "video/mp4")
            assert response.headers["content-range"] == "bytes 10-19/200"
            assert response.read() == bytes(range(10, 20))
        assert status_of(video, Range="bytes=500-600") == 416


def test_another_name_for_this_server_and_a_missing_token_get_nothing(
    runs: Path, eventually: Callable[..., None]
) -> None:
    with served(runs, token="s3cret") as address:
        assert status_of(f"{address}/api/runs") == 401
        assert status_of(f"{address}/api/runs?token=wrong") == 401
        assert status_of(f"{address}/api/runs", cookie="vlatrack=s3cret") == 200
        assert status_of(f"{address}/api/runs", cookie="vlatrack=s3cret", host="attacker.example") == 421
        host = address.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", "/run/a/b?token=s3cret&theme=dark")
        response = connection.getresponse()
        assert (response.status, response.headers["location"]) == (303, "/run/a/b?theme=dark")
        assert "HttpOnly" in response.headers["set-cookie"]
        response.read()
        connection.close()


def test_the_pages_and_all_that_they_load_come_from_here(runs: Path) -> None:
    with served(runs) as address:
        for page in ("/", "/run/toy/x", "/compare?run=a"):
            with urllib.request.urlopen(address + page) as response:
                text = response.read().decode()
                assert "default-src 'self'" in response.headers["content-security-policy"]
            assert "http" not in text.replace("<!doctype html>", "")
            for name in [part.split('"')[0] for part in text.split("/static/")[1:]]:
                assert status_of(f"{address}/static/{name}") == 200, name


def test_what_is_no_runs_folder_is_one_line_with_the_one_that_is_meant(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged_run(runs) as run:
        pass
    (tmp_path / "file").touch()
    meant = {"nowhere": "no such folder", "file": "not a folder"}
    meant |= {f"runs/toy/{run.run_id}": f"a single run.*: {runs}$", "runs/toy": f"a single experiment.*: {runs}$"}
    for folder, told in meant.items():
        with pytest.raises(TrackerError, match=told):
            ui(runs=tmp_path / folder)
    monkeypatch.setenv("VLATRACK_TOKEN", "guess me")
    with pytest.raises(TrackerError, match="at least 12 letters"):
        ui(runs=runs, host="0.0.0.0")


def test_the_command_serves_until_a_signal_and_leaves_nothing_behind(runs: Path, tmp_path: Path) -> None:
    with logged_run(runs) as run:
        pass
    command = [sys.executable, "-m", "vlatrack", "ui", "--runs", runs, "--port", "0"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        assert shown.stdout is not None
        told = shown.stdout.readline()
        assert told.startswith(f"dashboard of {runs}: http://127.0.0.1:")
        address = told.split()[3].rstrip("/")
        with urllib.request.urlopen(f"{address}/api/changes") as stream:  # who looks on does not keep it from ending
            assert run.run_id.encode() in next(line for line in stream if line.startswith(b"data: "))
            shown.terminate()
            assert shown.wait(30) == 0
        assert shown.stderr is not None
        assert shown.stderr.read() == ""

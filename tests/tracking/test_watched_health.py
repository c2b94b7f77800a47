"""A run is watched beside its training: what is found stands in the journal once, whatever is killed meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from health_curves import Line, curves, journal_text, planted
from mlflow.tracking import MlflowClient
from program import SUPPORT

from vlatrack.errors import TrackerError
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import Thresholds
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.delivery.webhook import VARIABLE, Webhook
from vlatrack.tracking.health import JournalHealth, health_of, recorded_findings, verdict_of
from vlatrack.tracking.journal.history import REWOUND
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

Eventually = Callable[..., None]
SPIKE_AT = 14


def spike(since: int, values: dict[str, float]) -> None:
    if since == 0:
        values["train_closs"] *= 8


def spiked() -> list[Line]:
    return planted(curves("quickstart-0"), spike, at=SPIKE_AT)


def later() -> list[Line]:
    """The end of the same curves, as if the run went on at their level."""
    windows = [line for line in curves("quickstart-0") if line.is_window]
    return [Line(line.step + 1000, line.t_ms, line.values) for line in windows[-8:]]


@pytest.fixture
def start(run_dir: Path) -> Iterator[Callable[..., TrackedRun]]:
    """Begins watched runs in the same directory, and ends what a test that fails leaves open."""
    with contextlib.ExitStack() as stack:

        def begin(*backends: BackendConfig, told: list[Finding] | None = None, **given: object) -> TrackedRun:
            run = TrackedRun.start(
                run_dir,
                uid="u1",
                name="watched",
                experiment="exp",
                backends=backends,
                params={},
                tags={},
                health=Thresholds(),
                on_health=([] if told is None else told).append,
                **given,  # type: ignore[arg-type]
            )
            stack.callback(run.finish, "KILLED", timeout_s=5)
            return run

        yield begin


def log(run: TrackedRun, lines: list[Line]) -> None:
    for line in lines:
        run.log(line.values, step=line.step)


def health_events(run_dir: Path) -> list[dict]:
    records = read_records(RunFiles(run_dir).journal)
    return [r.data for r in records if r.kind == Kind.EVENT and r.data["name"] == "health"]


def worker_of(run_dir: Path) -> psutil.Process:
    return psutil.Process(int(RunFiles(run_dir).delivery_lock.read_text()))


def has_worker(run_dir: Path) -> bool:
    lock = RunFiles(run_dir).delivery_lock
    return lock.exists() and lock.read_text().isdigit() and psutil.pid_exists(int(lock.read_text()))


def test_a_finding_becomes_an_alert_in_the_journal_while_the_run_goes_on(
    start: Callable[..., TrackedRun], run_dir: Path, eventually: Eventually
) -> None:
    told: list[Finding] = []
    run = start(told=told)
    log(run, spiked())
    eventually(lambda: health_events(run_dir) != [])
    (event,) = health_events(run_dir)
    assert event["alert"] is True
    assert set(event["data"]) == {"detector", "severity", "metric", "step", "value", "message", "remedy"}
    assert (event["data"]["detector"], event["data"]["metric"]) == ("spike", "train_closs")
    assert [finding.data() for finding in told] == [event["data"]]
    run.finish("FINISHED")
    assert verdict_of(RunFiles(run_dir).journal) == "warning: spike"
    assert not has_worker(run_dir)


def test_the_last_window_before_the_end_is_looked_at(start: Callable[..., TrackedRun], run_dir: Path) -> None:
    lines = spiked()
    last = max(n for n, line in enumerate(lines) if line.values.get("train_closs", 0) > 14)
    run = start()
    log(run, lines[: last + 1])
    assert run.finish("FINISHED").lost == 0
    assert [event["data"]["detector"] for event in health_events(run_dir)] == ["spike"]


def test_a_killed_watcher_is_replaced_and_finds_nothing_twice(
    start: Callable[..., TrackedRun], run_dir: Path, eventually: Eventually
) -> None:
    run = start()
    log(run, spiked())
    eventually(lambda: health_events(run_dir) != [])
    first = worker_of(run_dir)
    first.kill()
    eventually(lambda: has_worker(run_dir) and worker_of(run_dir).pid != first.pid)
    log(run, planted(later(), spike, at=3))
    run.finish("FINISHED")
    steps = [event["data"]["step"] for event in health_events(run_dir)]
    assert steps == [150, later()[3].step]


def test_a_killed_training_that_is_resumed_has_no_finding_twice(
    start: Callable[..., TrackedRun], run_dir: Path, eventually: Eventually
) -> None:
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    script = Path(__file__).with_name("watched_trainer.py")
    trainer = subprocess.Popen([sys.executable, script, run_dir], env=os.environ | {"PYTHONPATH": path})
    try:
        eventually(lambda: RunFiles(run_dir).journal.exists() and health_events(run_dir) != [])
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    run = start(resume=True)
    log(run, later())
    run.finish("FINISHED")
    assert [event["data"]["detector"] for event in health_events(run_dir)] == ["spike"]


def test_findings_of_steps_that_the_run_goes_back_over_are_dropped_and_may_come_anew(
    start: Callable[..., TrackedRun], run_dir: Path, eventually: Eventually
) -> None:
    run, lines = start(), spiked()
    log(run, lines)
    eventually(lambda: len(health_events(run_dir)) == 1)
    run.rewind(1, lines[-1].step)
    assert verdict_of(RunFiles(run_dir).journal) == "healthy"
    log(run, lines)
    eventually(lambda: len(health_events(run_dir)) == 2)
    run.finish("FINISHED")
    assert [f.detector for f in recorded_findings(RunFiles(run_dir).journal)] == ["spike"]
    assert [f.detector for f in health_of(run_dir)] == ["spike"]


def test_mlflow_has_the_verdict_as_a_tag(start: Callable[..., TrackedRun], stored_run_dir: Path) -> None:
    run = start(BackendConfig("mlflow"))
    log(run, spiked())
    assert run.finish("FINISHED").complete
    store = MlflowClient(f"sqlite:///{stored_run_dir.parent.parent / 'mlflow.db'}")
    (found,) = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert found.data.tags["vlatrack.health"] == "warning: spike"
    (alert,) = [text for name, text in found.data.tags.items() if name.startswith("vlatrack.alert.")]
    assert alert.startswith("health: warning: train_closs jumped from ")


def test_a_worker_that_watches_alone_loads_no_tracker(start: Callable[..., TrackedRun], run_dir: Path) -> None:
    run = start()
    log(run, curves("quickstart-0"))
    run.settle_health()
    probe = "import sys, vlatrack.tracking.delivery.worker; print('mlflow' in sys.modules, 'wandb' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False", "False"]


# --- the journal alone ----------------------------------------------------------------------------------


def written(run_dir: Path, text: str) -> Path:
    RunFiles(run_dir).delivery.mkdir(parents=True)
    RunFiles(run_dir).journal.write_text(text)
    return RunFiles(run_dir).journal


def as_records(*contents: tuple[str, int | None, dict], first: int = 0) -> str:
    return "".join(
        json.dumps(
            {"v": 1, "run": "u1", "writer": "t", "seq": first + n, "t_ms": 0, "kind": kind, "step": step, "data": data}
        )
        + "\n"
        for n, (kind, step, data) in enumerate(contents)
    )


def test_a_journal_in_pieces_has_the_findings_of_the_whole(run_dir: Path) -> None:
    text = as_records(*[("metrics", line.step, dict(line.values)) for line in spiked()])
    journal = written(run_dir, text[:5000])
    health = JournalHealth(journal, Thresholds())
    for end in range(5000, len(text) + 5000, 5000):
        journal.write_text(text[:end])
        health.read()
    assert [f.detector for f in health.found] == ["spike"]
    assert health.found == health_of(run_dir)


def test_a_rewind_in_the_journal_takes_its_findings_with_it(run_dir: Path) -> None:
    metrics = [("metrics", line.step, dict(line.values)) for line in spiked()]
    rewind = ("event", None, {"name": REWOUND, "data": {"from_step": 1, "to_step": 999}, "alert": False})
    clean = [("metrics", line.step, dict(line.values)) for line in curves("quickstart-0")]
    written(run_dir, as_records(*metrics, rewind, *clean))
    assert health_of(run_dir) == []


def test_a_step_that_was_not_taken_is_a_finding_once(run_dir: Path) -> None:
    lost = [
        ("event", None, {"name": "non_finite", "data": {"step": n, "reason": "NaN"}, "alert": True}) for n in (4, 5)
    ]
    written(run_dir, as_records(*lost))
    (found,) = health_of(run_dir)
    assert (found.detector, found.severity, found.step) == ("not_finite", "critical", 4)


def test_a_journal_of_somebody_else_does_no_harm(run_dir: Path) -> None:
    odd = [
        ("metrics", 1, {"train_closs": 10**400, "train_l1_loss_action_999999999": 1.0, "\x1b]0;": 1.0}),
        ("event", None, {"name": "health", "data": {"step": "1"}, "alert": True}),
        ("event", None, {"name": "health", "data": {}, "alert": True}),
        ("event", None, {"name": REWOUND, "data": {"from_step": None}, "alert": False}),
        ("event", None, {"name": "non_finite", "data": {"step": []}, "alert": False}),
    ]
    journal = written(run_dir, as_records(*odd))
    assert [found.detector for found in health_of(run_dir)] == ["not_finite"]
    assert recorded_findings(journal) == []


def test_a_damaged_threshold_file_is_one_line(run_dir: Path) -> None:
    written(run_dir, journal_text("toy-0"))
    RunFiles(run_dir).health.write_text('{"spike": {"z": -1}}')
    with pytest.raises(TrackerError, match=r"health\.json: damaged \(spike\.z: not a positive number\)"):
        health_of(run_dir)


# --- webhooks -------------------------------------------------------------------------------------------


class Chat(ThreadingHTTPServer):
    """Takes messages as Slack does; answers with `statuses` first."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.statuses: list[int] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = chat.statuses.pop(0) if chat.statuses else 200
                if status == 200:
                    chat.messages.append(body["text"])
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        super().__init__(("127.0.0.1", 0), Handler)


SECRET = "T0PLANTED/B0PLANTED/xyzzyxyzzyxyzzy"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    server = Chat()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/services/{SECRET}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chat_is_told_of_a_finding_and_the_secret_stays_in_the_environment(
    start: Callable[..., TrackedRun], run_dir: Path, chat: Chat
) -> None:
    run = start()
    log(run, spiked())
    run.finish("FINISHED")
    (message,) = chat.messages
    assert message.startswith("exp / run-1: warning: train_closs jumped from ")
    texts = [file.read_text() for file in run_dir.rglob("*") if file.is_file()]
    assert not any(SECRET in text for text in texts)


def test_a_server_that_fails_for_a_moment_is_asked_again(
    start: Callable[..., TrackedRun], run_dir: Path, chat: Chat
) -> None:
    chat.statuses = [503]
    run = start()
    log(run, spiked())
    run.finish("FINISHED")
    assert len(chat.messages) == 1
    logged = RunFiles(run_dir).delivery_log.read_text()
    assert "webhook at 127.0.0.1: attempt 1 of 3 failed (the server answers 503)" in logged
    assert SECRET not in logged


def test_a_killed_sender_does_not_tell_a_finding_twice(
    start: Callable[..., TrackedRun], run_dir: Path, chat: Chat, eventually: Eventually
) -> None:
    run = start()
    log(run, spiked())
    place = RunFiles(run_dir).delivery / "webhook.json"
    eventually(lambda: len(chat.messages) == 1 and place.exists() and json.loads(place.read_text())["offset"] > 0)
    size = RunFiles(run_dir).journal.stat().st_size
    eventually(lambda: json.loads(place.read_text())["offset"] == size)
    first = worker_of(run_dir)
    first.kill()
    eventually(lambda: has_worker(run_dir) and worker_of(run_dir).pid != first.pid)
    run.finish("FINISHED")
    assert len(chat.messages) == 1


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://127.0.0.1/x", "https://", "file:///etc/passwd", "http://[x"]
)
def test_only_https_or_this_machine_gets_findings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, url)
    with pytest.raises(TrackerError, match=VARIABLE) as caught:
        Webhook.of_environment()
    assert url == "https://" or url not in str(caught.value)


def test_a_run_that_is_opened_again_without_a_training_is_not_watched_and_keeps_its_thresholds(
    start: Callable[..., TrackedRun], run_dir: Path
) -> None:
    run = start()
    log(run, spiked()[:10])
    run.finish("FINISHED")
    thresholds = RunFiles(run_dir).health.read_text()
    with TrackedRun.start(
        run_dir, uid="u1", name="watched", experiment="exp", backends=[], params={}, tags={}, resume=True
    ) as again:
        log(again, spiked())
    assert health_events(run_dir) == []
    assert RunFiles(run_dir).health.read_text() == thresholds


def test_what_is_no_fault_is_a_note_without_an_alert_and_leaves_the_run_healthy(
    start: Callable[..., TrackedRun], run_dir: Path
) -> None:
    told: list[Finding] = []
    run = start(told=told)
    for step in range(10):
        run.log({"train_l1_loss_action": 0.002, "train_quantisation_floor": 0.002}, step=step)
    run.finish("FINISHED")
    assert [finding.detector for finding in told] == ["quantisation_floor"]
    notes = [r.data for r in read_records(RunFiles(run_dir).journal) if r.data.get("name") == "health_note"]
    assert [note["alert"] for note in notes] == [False]
    assert verdict_of(RunFiles(run_dir).journal) == "healthy"

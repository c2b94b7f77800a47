"""A tracked run as training sees it: one write into the journal a call; trackers are served by another process."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from vlatrack.errors import TrackerError
from vlatrack.health.detectors.not_finite import NotFiniteDetector
from vlatrack.health.finding import Finding, Severity
from vlatrack.health.thresholds import Thresholds
from vlatrack.tracking.arguments import (
    check_status,
    checked_experiment,
    checked_text,
    checked_time,
    checked_uid,
    described,
    plain_backends,
    plain_params,
    shown,
)
from vlatrack.tracking.artifacts import artifact_data
from vlatrack.tracking.backends.base import BackendConfig, DatasetInput, Scalar, Status
from vlatrack.tracking.backends.registry import backend_label, notices_of
from vlatrack.tracking.delivery.report import BackendDelivery, DeliveryReport, delivery_report
from vlatrack.tracking.delivery.supervisor import DeliveryProcess, end_delivery
from vlatrack.tracking.delivery.webhook import VARIABLE as WEBHOOK
from vlatrack.tracking.delivery.worker import PATIENCE_WITHOUT_TRAINER_S
from vlatrack.tracking.health import HEALTH, NON_FINITE, NOTE
from vlatrack.tracking.journal.history import REWOUND, Rewinds, RunStatus, last_start, metric_history, run_status
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.logged_values import LoggedValues
from vlatrack.tracking.privacy import redact, redact_param
from vlatrack.tracking.run_files import RunFiles, checked_runs_folder, new_run_directory
from vlatrack.tracking.run_start import (
    begin_journal,
    cannot_be_written,
    check_continues,
    open_journal,
    start_data,
    with_destinations,
)
from vlatrack.tracking.trust import OWN_RUN, Trust, remember
from vlatrack.tracking.watched_health import WatchedHealth

__all__ = [
    "BackendConfig",
    "BackendDelivery",
    "DatasetInput",
    "DeliveryReport",
    "RunStatus",
    "TrackedRun",
    "metric_history",
    "run_status",
    "start_run",
]

FULL_DISK_TIMEOUT_S = 60.0
HEALTH_TIMEOUT_S = 5.0
_INT64 = 1 << 63
_OPEN_RUNS: "dict[Path, TrackedRun]" = {}
"""The runs that this process writes, by directory."""
_TO_BEGIN_AGAIN: set[Path] = set()
"""Directories of runs that this process has killed or failed to start: the next start begins them again."""
_log = logging.getLogger(__name__)


def start_run(
    experiment: str,
    *,
    name: str | None = None,
    runs: Path | str = Path("runs"),
    backends: Sequence[BackendConfig | Mapping[str, Any] | str] | None = None,
    params: Mapping[str, Scalar] | None = None,
    tags: Mapping[str, str] | None = None,
    group: str | None = None,
    resume: Path | str | None = None,
) -> "TrackedRun":
    """Begin a new run of an experiment, in a directory of its own, `<runs>/<experiment>/<run-id>`; for notebooks and
    scripts. Use it in a `with` block, or call `finish`.

    `backends` are trackers: names (`"mlflow"`), what the YAML's `tracking.backends` lists
    (`{"kind": "wandb", "project": "vla"}`), or `BackendConfig`; None: MLflow on SQLite in `runs`. `name` is what the
    trackers show, the run's id if None. `resume` continues a run instead, by its id or its directory.

    `params` and `tags` are texts and numbers; paths become text, and lists and mappings among the `params` JSON.

    Raises TrackerError or MissingPackageError, before it makes anything, for what cannot be used.
    """
    configs = [BackendConfig("mlflow")] if backends is None else plain_backends(backends)
    for what, place in (("runs", runs), ("resume", resume or runs)):
        if not isinstance(place, str | Path):
            raise TrackerError(f"{what}={shown(place)}: no path; give a text or a Path")
    folder = checked_runs_folder(Path(runs)) / checked_experiment(experiment)
    given: dict[str, Any] = {"params": params or {}, "tags": tags or {}, "group": group}
    if resume is None:
        start_data(name=name or "", experiment=experiment, backends=configs, datasets=(), **given)
        try:
            run_dir = new_run_directory(folder)
        except OSError as error:
            raise cannot_be_written(error, folder) from error
        uid = f"{experiment[:40]}-{run_dir.name}"
    else:
        run_dir = RunFiles(folder / resume if Path(resume).name == str(resume) else Path(resume)).run_dir
        start = last_start(RunFiles(run_dir).journal) if RunFiles(run_dir).journal.exists() else None
        if start is None:
            raise TrackerError(f"{run_dir}: no run to resume; give its id or its directory")
        uid, name = start.run, name or start.data["name"]
    return TrackedRun.start(
        run_dir,
        uid=uid,
        name=name or run_dir.name,
        experiment=experiment,
        backends=configs,
        resume=resume is not None,
        **given,
    )


class TrackedRun:
    """One run that is being logged. Nothing here waits for a tracker, except `close` and `finish`, which are bounded.

    `end` says how the training ended; figures and other files may be logged after it, until `close` waits for the
    trackers. `finish` is both. As a context manager it finishes the run: FINISHED, KILLED after Ctrl-C, FAILED after
    any other exception.

    Every method may be called from any thread and from signal handlers. `log` never raises; the others raise
    TrackerError for what they cannot take, and keep a full disk to the report and a warning.

    Only the process that started the run has a part in it. In a forked child `end`, `close`, `finish` and the end of a
    `with` block return at once, and what it logs is dropped with a warning, counted, and told when the run closes. A
    run cannot be pickled, so no spawned worker gets it.
    """

    def __init__(
        self,
        files: RunFiles,
        journal: Journal,
        backends: Sequence[BackendConfig],
        trust: Trust = OWN_RUN,
        watched: WatchedHealth | None = None,
    ) -> None:
        """Use `TrackedRun.start`."""
        self._files = files
        self._journal = journal
        self.notices = tuple(notice for config in backends for notice in notices_of(config, files.run_dir))
        """What a user should know of the trackers now, one line each."""
        self._labels = [backend_label(config, index) for index, config in enumerate(backends)]
        serves_custom = any(config.kind == "custom" for config in backends)
        self._health = watched
        on_health = None if watched is None else watched.take
        delivery = DeliveryProcess(self._place_now, serves_custom=serves_custom, trust=trust, on_health=on_health)
        self._delivery = delivery if backends or watched is not None else None
        self._values = LoggedValues()
        self._ended = False
        self._report: DeliveryReport | None = None
        self._closing_in: set[int] = set()
        """The threads that are closing the run: a signal handler that does so as well must not wait for its thread."""
        self._rewinds = 0
        self._told_of_non_finite = False
        """Whether people have had an alert of a step that was not taken: the finding is not to be another one."""
        self.last_step = 0
        """The training step that was logged last."""

    @property
    def path(self) -> Path:
        """The run directory, `<runs>/<experiment>/<run-id>`; where it is now, if it was moved."""
        return self._place_now().run_dir

    @property
    def run_id(self) -> str:
        """The name of the run directory, by which `start_run` resumes it."""
        return self.path.name

    @classmethod
    def start(
        cls,
        run_dir: Path,
        *,
        uid: str,
        name: str,
        experiment: str,
        backends: Sequence[BackendConfig],
        params: Mapping[str, Scalar],
        tags: Mapping[str, str],
        datasets: Sequence[DatasetInput] = (),
        group: str | None = None,
        resume: bool = False,
        resume_step: int | None = None,
        t_ms: int | None = None,
        trust: Trust = OWN_RUN,
        health: Thresholds | None = None,
        on_health: Callable[[Finding], None] = lambda finding: None,
    ) -> "TrackedRun":
        """Open the journal of `run_dir` (`<runs>/<experiment>/<run-id>`) and start its delivery process.

        `uid` identifies the run at every tracker (letters, digits, `._-`, at most 64). With `resume` the same remote
        runs continue, from training step `resume_step`: steps that were logged beyond it are marked as rewound, by an
        event and by a tag. Trackers show the runs of one `group` together. `t_ms` is when the run began in Unix
        milliseconds, now if None. `trust` is what is believed of `backends` that somebody else's run folder names.

        `health` are the thresholds of the detectors that watch the run; None: none does. What they find becomes an
        event, and `on_health` is called with it, from a thread.

        A run that this process has left open in that directory, as an interrupted cell of a notebook does, is KILLED
        first, and begins again: from `resume_step`, or else from the very start.

        Raises TrackerError or MissingPackageError for a backend, parameter or tag that cannot be used, a run that is
        being written, or one that exists and is not to be resumed.
        """
        checked_uid(uid)
        t_ms = None if t_ms is None else checked_time(t_ms)
        data = start_data(name, experiment, backends, params, tags, datasets, group)
        files = RunFiles(run_dir)
        if (left_open := _OPEN_RUNS.get(files.run_dir)) is not None and not left_open._journal.forked:
            check_continues(files, uid, experiment, True)
            _log.warning("%s: this process has it open; that run is KILLED, and begins again", files.run_dir)
            _TO_BEGIN_AGAIN.add(files.run_dir)
            left_open.finish("KILLED", reason="started again by the same process", timeout_s=0)
        if files.run_dir in _TO_BEGIN_AGAIN and not resume:
            resume, resume_step = True, -1
        journal = run = None
        try:
            journal = open_journal(files, uid)
            check_continues(files, uid, experiment, resume)
            backends = with_destinations(files, backends)
            watched = None if health is None or not health.any_on else WatchedHealth()
            run = cls(files, journal, backends, trust, watched)
            if watched is not None:
                watched.listeners = (run._record_finding, on_health)
            end_delivery(files)
            rewinds = Rewinds.of(files.run_dir, resume_step)
            data["tags"] |= rewinds.tags
            if journal.first_seq == 0:
                data["groups_metrics"] = True
            begin_journal(files, journal, backends, data, t_ms, health)
            run.last_step = max(resume_step or 0, 0)
            run._rewinds = len(rewinds.tags)
            if rewinds.new is not None:
                run.event(REWOUND, rewinds.new)
            if trust.destination:
                remember(backends)
            if run._delivery is not None:
                run._delivery.start()
            _OPEN_RUNS[files.run_dir] = run
            _TO_BEGIN_AGAIN.discard(files.run_dir)
            return run
        except BaseException as error:  # Ctrl-C above all: a notebook lives on, and would keep the lock
            if run is not None and run._journal.has_begun:
                _TO_BEGIN_AGAIN.add(files.run_dir)
                run._abandon(_status_after(error), described(error), None)
            elif journal is not None:
                journal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.finish("FINISHED")
        else:
            self.finish(_status_after(error), reason=described(error))

    def __reduce__(self) -> NoReturn:
        raise TrackerError("a run cannot be copied or sent to another process; log in the process that started it")

    def log(self, metrics: Mapping[str, float], *, step: int, t_ms: int | None = None) -> None:
        """Write the values (numbers of Python, numpy or torch) of one training step; one write, never raises.

        `step` is a whole number of 64 bits; without one, the values stand at the step before. `t_ms` is when they were
        measured in Unix milliseconds, now if None.

        What cannot be logged, whatever it is, is left out with one warning for each name; a full disk is counted and
        reported at the end. After the end of the run nothing is logged, with one warning. Only KeyboardInterrupt,
        SystemExit and what a signal handler raises pass through.
        """
        if type(metrics) is dict:
            metrics = metrics.copy()  # another thread may change it
        if type(metrics) is not dict or not all(type(k) is str and type(v) is float for k, v in metrics.items()):
            metrics = self._values.numbers(metrics)
        if type(step) is not int or not -_INT64 <= step < _INT64:
            step = self._values.step(step, instead=self.last_step)
        if t_ms is not None:
            t_ms = self._values.time(t_ms)
        if not metrics.keys() <= self._values.safe_names:
            metrics = self._values.without_secrets(metrics)
        self.last_step = step
        self._journal.append(Kind.METRICS, metrics, step=step, t_ms=t_ms)

    def log_artifact(
        self,
        path: Path | str,
        *,
        name: str,
        aliases: Sequence[str] = (),
        sha256: Mapping[str, str] | None = None,
        only: Sequence[str] = (),
        table: str | None = None,
    ) -> None:
        """Hand a file or folder of the run directory, now complete, to the trackers as `name` (`checkpoints/epoch-3`).

        A relative `path` is one of the current directory or, where there is no such file, of the run directory.
        `aliases` are further names of this version, such as `best`, for trackers that have such. Each file is read once
        for its SHA-256, except those whose hexadecimal digest `sha256` gives, by path inside the artifact.

        Of a folder, `only` names the files and folders in it that belong to the artifact; none: all of them. `table` is
        the file in it that trackers show as a table: JSON with `columns` and `data`, a list of rows. A cell that names
        a video of the artifact, `videos/0.mp4`, stands for that where a tracker plays videos in tables.

        Raises TrackerError if it is missing, empty, unreadable, outside the run directory, or a pipe, socket or device,
        if a folder holds one of these, if no line can show a file's name, or if a given digest is none.
        """
        given: dict[str, Any] = {"aliases": aliases, "sha256": sha256, "only": only, "table": table}
        data = artifact_data(path, self.path, name=name, **given)
        self._journal.append(Kind.ARTIFACT, data)

    def event(self, name: str, data: Mapping[str, Scalar], *, alert: bool = False) -> None:
        """Write what happened; with `alert` the trackers tell the people who watch the run.

        Raises TrackerError for a name or values that are no texts, numbers or None; lists and mappings become JSON.
        """
        if not isinstance(name, str):
            raise TrackerError(f"event {shown(name)}: its name is no text; write str(…)")
        plain = plain_params(data, f"event {name}")
        self._told_of_non_finite |= name == NON_FINITE and bool(alert)
        safe = {key: redact_param(key, value) if isinstance(value, str) else value for key, value in plain.items()}
        self._journal.append(Kind.EVENT, {"name": redact(name), "data": safe, "alert": bool(alert)})

    def rewind(self, from_step: int, to_step: int) -> None:
        """Mark the training steps from one to another, inclusive, as ones that the run goes back over."""
        self._rewinds += 1
        self.event(REWOUND, {"number": self._rewinds, "from_step": from_step, "to_step": to_step})
        if self._health is not None:
            self._health.rewind(from_step, self._journal.records - 1)

    def settle_health(self, timeout_s: float = HEALTH_TIMEOUT_S) -> None:
        """After `end`: return when the detectors have seen everything, and what they found is in the journal; at the
        latest after so many seconds."""
        if self._health is not None and self._ended and self._delivery is not None:
            self._health.await_end(min(timeout_s, HEALTH_TIMEOUT_S))

    def sync(self) -> None:
        """Return when everything logged so far is on the disk; OSError if the disk refuses."""
        self._journal.sync()

    def end(
        self,
        status: Status,
        reason: str | None = None,
        t_ms: int | None = None,
        *,
        disk_timeout_s: float = FULL_DISK_TIMEOUT_S,
    ) -> None:
        """Write at once, and durably, how the run ended; artifacts and events of it may follow until `close`.

        Whatever happens after this, the run has this status. `t_ms` is when it ended in Unix milliseconds, now if None.
        A full disk is waited for, at most `disk_timeout_s` seconds. A second call changes nothing.

        Raises TrackerError, before anything is written, for another status than FINISHED, FAILED and KILLED, a reason
        that is no text, or a `t_ms` that is no time: the run goes on then.
        """
        check_status(status)
        checked_text("reason", reason)
        t_ms = None if t_ms is None else checked_time(t_ms)
        if self._ended or self._journal.forked:
            return
        until = int((time.time() + PATIENCE_WITHOUT_TRAINER_S) * 1000)
        data = {"status": status, "reason": None if reason is None else redact(reason), "deliver_until_ms": until}
        self._journal.append(Kind.FINISH, data, t_ms=t_ms, patience_s=disk_timeout_s)
        self._ended = True  # not before: of a call that was interrupted, the next one is to write the record
        self._journal.sync_or_warn()

    def close(self, timeout_s: float = 60) -> DeliveryReport:
        """Release the journal and wait, at most about `timeout_s` seconds, until the trackers have everything.

        A run without an end is KILLED. A second call changes nothing. Ctrl-C meanwhile is raised at once: the journal
        is released all the same, and the delivery process goes on alone.
        """
        return self._end_and_close("KILLED", "closed without an end", timeout_s)

    def finish(
        self, status: Status, *, reason: str | None = None, timeout_s: float = 60, t_ms: int | None = None
    ) -> DeliveryReport:
        """`end` and `close`; a second call changes nothing. Raises what `end` raises: the run goes on then."""
        check_status(status)
        checked_text("reason", reason)
        t_ms = None if t_ms is None else checked_time(t_ms)
        return self._end_and_close(status, reason, timeout_s, t_ms)

    def _end_and_close(
        self, status: Status, reason: str | None, timeout_s: float, t_ms: int | None = None
    ) -> DeliveryReport:
        thread = threading.get_ident()
        if self._report is None and not self._journal.forked and thread not in self._closing_in:
            self._closing_in.add(thread)
            try:
                self.end(status, reason, t_ms, disk_timeout_s=timeout_s)
                self.settle_health(timeout_s)
                self._release()
                if self._delivery is not None and self._labels:
                    self._delivery.await_end(timeout_s)
                elif self._delivery is not None:  # it watches alone, and has told everything
                    self._delivery.await_end(timeout_s if WEBHOOK in os.environ else 0)
            except BaseException:  # Ctrl-C above all: a notebook lives on, and would keep the lock
                self._abandon(status, reason, t_ms)
                raise
            finally:
                self._closing_in.discard(thread)
            self._report = self._report_of_delivery()
        return self._report or self._report_of_delivery()

    def _record_finding(self, finding: Finding) -> None:
        is_fault = finding.severity is not Severity.INFO
        is_known = finding.detector == NotFiniteDetector.name and self._told_of_non_finite
        self.event(HEALTH if is_fault else NOTE, finding.data(), alert=is_fault and not is_known)

    def _abandon(self, status: Status, reason: str | None, t_ms: int | None) -> None:
        try:
            self.end(status, reason, t_ms, disk_timeout_s=0)
            self._release()
        finally:
            if self._delivery is not None:
                self._delivery.leave()
                self._delivery = None  # which a later call must not wait for: another run may have it ended

    def _release(self) -> None:
        if self._health is not None:
            self._health.listeners = ()
        self._place_now()  # while the journal is open, it can be followed
        self._journal.close()
        for run_dir in [run_dir for run_dir, run in _OPEN_RUNS.items() if run is self]:
            del _OPEN_RUNS[run_dir]

    def _place_now(self) -> RunFiles:
        """The files of the run where they are: somebody may move its folder while it goes on."""
        run_dir = self._journal.place.parent
        if run_dir != self._files.run_dir:
            _log.warning(
                "%s: the run's folder was moved to %s, and the run goes on there", self._files.run_dir, run_dir
            )
            self._files = RunFiles(run_dir)
        return self._files

    def _report_of_delivery(self) -> DeliveryReport:
        if self._files.journal.exists():
            return delivery_report(self._files.run_dir, self._labels, lost=self._journal.lost)
        told = (
            f"{self._files.run_dir} is gone; where it was moved to another disk, `vlatrack sync` delivers what is there"
        )
        _log.warning(told)
        records = self._journal.records
        shares = [BackendDelivery(label, 0, records, 0, None, told) for label in self._labels]
        return DeliveryReport(tuple(shares), self._journal.lost)


def _status_after(error: BaseException) -> Status:
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"

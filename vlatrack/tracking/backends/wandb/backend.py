"""Weights & Biases, wandb 0.31: online with a key, else offline files below the run directory.

`_step` is the journal's sequence number, which only grows, also where training goes back to a checkpoint; the x axis
of every chart is the metric `train_step`. What the server holds, not what was sent, decides where delivery goes on.
"""

import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import wandb
from wandb.apis.public import Run as PublicRun

from vlatrack.metrics.grouping import documented_name
from vlatrack.metrics.schema import Direction, MetricSchema
from vlatrack.tracking.artifacts import CopyRule
from vlatrack.tracking.backends.base import (
    DIGEST_TAGS,
    Artifact,
    Audit,
    NumberFormat,
    Position,
    RejectedError,
    Rejection,
    RunEvent,
    RunFinish,
    RunStart,
    StoredValue,
    metric_name,
)
from vlatrack.tracking.backends.names import escaped, unescaped
from vlatrack.tracking.backends.wandb.account import resolve_mode
from vlatrack.tracking.backends.wandb.artifacts import put_artifact, use_dataset
from vlatrack.tracking.backends.wandb.clients import (
    closed,
    end_idle_client,
    end_orphaned_clients,
    forget_dead_client,
    opened,
    reason_behind,
)
from vlatrack.tracking.backends.wandb.steps import StepShift
from vlatrack.tracking.backends.wandb.values import stored_values
from vlatrack.tracking.evaluated import Evaluated
from vlatrack.tracking.health import HEALTH, verdict_of
from vlatrack.tracking.journal.history import REWOUND
from vlatrack.tracking.journal.records import Record
from vlatrack.tracking.run_files import RunFiles, held_path

X_AXIS = "train_step"
METRIC = "metric/"
"""Prefix of metrics whose names W&B, or the x axis, has taken."""
HEALTH_KEY = "health/verdict"
"""In the summary of a run that is watched: `healthy`, or what was found, by which the table of runs can be sorted."""
BEST = "best/"
"""Prefix of a metric's best value in the summary; the last value stands under the metric's own name."""

_FORBIDDEN = re.compile(r"\\|:(?=x)")
"""A backslash at the end of a name ends the client's process."""

_OFFLINE_RUN = re.compile(r"offline-run-\d{8}_\d{6}-(?P<id>.+)")
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}
LONGEST_TAG, LONGEST_RUN_NAME, RETRIES = 64, 128, 5
INIT_TIMEOUT_S, NO_PROGRESS_S, POLL_S = 60.0, 5.0, 0.5
ROWS_IN_FLIGHT = 20_000
"""Rows of a repair that may lie in the memory of the client."""
ASK_EVERY_S, STALLED_S = 15.0, 300.0
"""The client uploads every 15 s; after a refusal it stops for good without an error."""


class WandbBackend:
    """One W&B run whose id is the run's uid, with `id_suffix`: the client serves one run of an id at a time, so that of
    several W&B backends each has an id of its own."""

    uploads_aside: Literal[True] = True
    numbers = NumberFormat()

    def __init__(
        self,
        run_dir: Path,
        *,
        naming: str,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        copy_checkpoints: bool = False,
        copy_up_to_mb: float = 100,
        id_suffix: str = "",
    ) -> None:
        self.url: str | None = None
        self._folder = RunFiles(run_dir).run_dir
        self._naming = naming
        self._project = project or "vlatrack"
        self._entity = entity
        self._id_suffix = id_suffix
        self._copy_rule = CopyRule(copy_checkpoints, copy_up_to_mb)
        self._online = resolve_mode(mode or "auto") == "online"
        self._may_go_online = mode != "offline"
        self._run: wandb.Run | None = None
        self._sent_seq = self._stored_seq = self._sent_step = -1
        self._shift = StepShift()
        self._ask_at = self._stalled_at = 0.0
        self._public: PublicRun | None = None
        self._best = BestValues({})
        self._uploading = threading.Lock()

    def open(self, start: RunStart, acknowledged: int) -> Position:
        self.close()
        forget_dead_client()
        end_orphaned_clients(self._folder / "wandb")
        held = held_path(self._folder)
        # The artifact store of the client must not fill the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(held / "wandb"))
        for folder in (self._folder / "wandb").glob("offline-run-*"):
            if (offline := _OFFLINE_RUN.fullmatch(folder.name)) and offline["id"] == self._id_of(start):
                shutil.rmtree(folder)  # what comes now supersedes it
        self._run = run = self._init(start, held)
        opened(run.id)
        run.define_metric(X_AXIS, hidden=True)
        run.define_metric("*", step_metric=X_AXIS)
        known = dict(run.summary).items()
        self._best = BestValues(
            {documented_name(k.removeprefix(BEST)): float(v) for k, v in known if k.startswith(BEST) and v is not None}
        )
        if self._online:
            self.url = run.url
            self._shift = StepShift.of(run.config)
            self._sent_step = run.starting_step - 1
            self._sent_seq = self._stored_seq = self._shift.seq_of(self._sent_step)
            return Position(self._sent_seq + 1, acknowledged + 1 if run.resumed else 0)
        # Offline files cannot be continued: a new one holds the whole run, the journal has everything.
        self.url = (
            f"with a key: vlatrack sync {self._folder}"
            if self._may_go_online
            else str(self._folder / "wandb" / Path(run.dir).parent.name)
        )
        return Position(0, 0)

    def describe(self, start: RunStart) -> list[Rejection]:
        run = self._open_run
        run.config.update({**start.params, "tags": dict(start.tags)}, allow_val_change=True)
        run.tags = [f"{name}:{value}"[:LONGEST_TAG] for name, value in start.tags.items() if name not in DIGEST_TAGS]
        self._put_health()
        return []

    def deliver(self, records: Sequence[Record]) -> list[Rejection]:
        if self._stored_seq >= self._sent_seq:
            self._expect_progress()
        for record in records:
            self._log(record, self._shift.step_of(record.seq))
        if improved := self._best.improved_by(records):
            best = {f"{BEST}{self.metric_key(name)}": value for name, value in improved.items()}
            self._open_run.summary.update(best)
        return []

    def deliver_again(self, records: Iterable[Record], *, at_most: int, next_seq: int) -> list[Rejection]:
        """Rows that are missing at the end are delivered as ever, others appended; charts have the training step as
        their x axis, and so show them in their place."""
        held, run = self._sent_seq, self._open_run
        summary, newer = dict(run.summary), dict[str, object]()
        step, is_behind = self._sent_step + 1, False
        for number, record in enumerate(records):
            if number == 0 and record.seq <= held:
                is_behind = True
                self._leave_room(StepShift(next_seq, max(1, step + at_most - next_seq)))
            self._log(record, step if is_behind else self._shift.step_of(record.seq))
            step = self._sent_step + 1
            keys = (*map(self.metric_key, record.data), X_AXIS)
            newer |= {key: summary.get(key) if record.seq <= held else None for key in keys}
            if number % ROWS_IN_FLIGHT == ROWS_IN_FLIGHT - 1:
                self._confirm(STALLED_S)
        # The client takes the last row that it gets for the newest.
        run.summary.update({key: value for key, value in newer.items() if value is not None})
        return []

    def stored(self) -> int | None:
        if not self._online or self._stored_seq >= self._sent_seq:
            return None
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            held = self._last_seq()
            if held > self._stored_seq:
                self._stored_seq = held
                self._expect_progress()
            elif now > self._stalled_at:
                raise ConnectionError(f"W&B holds records up to {held} of {self._sent_seq} and takes no more")
        return self._stored_seq if self._stored_seq < self._sent_seq else None

    def put_artifact(self, artifact: Artifact) -> None:
        with self._uploading:
            put_artifact(self._open_run, artifact, self._copy_rule, wait=self._online)

    def event(self, event: RunEvent) -> None:
        """The data of an evaluation becomes an input of the run. Offline files hold no inputs; a sync with a key goes
        through all events. What is found about the run's health changes its verdict."""
        if event.name in (HEALTH, REWOUND):
            self._put_health()
        evaluated = Evaluated.of(event)
        if evaluated is not None and self._online:
            for result in evaluated.results:
                use_dataset(self._open_run, result.dataset)

    def alert(self, title: str, text: str, record: Record) -> None:
        self._open_run.alert(title, text)

    def finish(self, finish: RunFinish) -> None:
        run = self._open_run
        if finish.reason is not None:
            run.summary["reason"] = finish.reason
        if self._online:
            self._public_run()  # asked for while the run is still known here
        with self._uploading:  # the client would give up an upload that it waits for
            self._run = None
            closed(run.id)
            run.finish(exit_code=EXIT_CODES[finish.status])
        if self._online:
            self._confirm(NO_PROGRESS_S)
            self._stored_seq = self._sent_seq
        else:
            end_idle_client()

    def audit(self, start: RunStart) -> Audit:
        run = self._stored_run(start)
        if run is None:
            return Audit()
        step, shift = int(run.lastHistoryStep), StepShift.of(run.config)
        return Audit(str(run.state).upper(), last_seq=shift.seq_of(step) if shift.tells(step) else None)

    def metric_key(self, name: str) -> str:
        return wandb_key(metric_name(name, self._naming))

    def values(self, start: RunStart) -> Iterator[StoredValue]:
        run = self._stored_run(start)
        return iter(()) if run is None else stored_values(run, X_AXIS)

    def close(self) -> None:
        """End the client's process for this run; a run without an end is left as crashed."""
        self._public = None
        if self._run is not None:
            run, self._run = self._run, None
            closed(run.id)
            run.finish(exit_code=1)

    def _put_health(self) -> None:
        files = RunFiles(self._folder)
        if files.health.exists():
            self._open_run.summary[HEALTH_KEY] = verdict_of(files.journal)

    def _id_of(self, start: RunStart) -> str:
        return f"{start.uid}{self._id_suffix}"

    def _init(self, start: RunStart, folder: Path) -> wandb.Run:
        try:
            return wandb.init(
                id=self._id_of(start),
                name=start.name[:LONGEST_RUN_NAME],
                project=self._project,
                entity=self._entity,
                group=(start.group or start.experiment)[:LONGEST_RUN_NAME],
                job_type=None if start.group is None else start.experiment,
                dir=folder,
                mode="online" if self._online else "offline",
                resume="allow" if self._online else None,
                reinit="create_new",
                settings=_quiet_settings(online=self._online),
            )
        except Exception as error:
            if (reason := reason_behind(error, self._id_of(start))) is not None:
                raise reason from error
            raise

    @property
    def _open_run(self) -> wandb.Run:
        assert self._run is not None, "open it first"
        return self._run

    def _public_run(self) -> PublicRun:
        if self._public is None:
            run = self._open_run
            self._public = wandb.Api().run(f"{run.entity}/{run.project}/{run.id}")
        return self._public

    def _stored_run(self, start: RunStart) -> PublicRun | None:
        """The run as the server has it; None if it has none, RejectedError while there is no server."""
        if not self._online:
            raise RejectedError("offline files: with a key, `vlatrack sync` brings the run to W&B")
        path = [*([] if self._entity is None else [self._entity]), self._project, self._id_of(start)]
        try:
            return wandb.Api().run("/".join(path))
        except wandb.errors.CommError as error:  # also of a run that the server does not know
            if "Could not find run" not in str(error):
                raise
            return None

    def _log(self, record: Record, step: int) -> None:
        row: dict[str, float] = {self.metric_key(name): value for name, value in record.data.items()}
        row |= {X_AXIS: record.step or 0, "_timestamp": record.t_ms / 1000}
        # Committed, else the client keeps the row to itself until the next one comes.
        self._open_run.log(row, step=step, commit=True)
        self._sent_seq, self._sent_step = max(self._sent_seq, record.seq), step

    def _leave_room(self, shift: StepShift) -> None:
        """Say in the run's config from which `_step` on a resume goes on, before any row is appended: else that would
        take its position for one that it has not."""
        self._open_run.config.update(shift.in_config, allow_val_change=True)
        give_up = time.monotonic() + STALLED_S
        while StepShift.of(wandb.Api().run("/".join(self._public_run().path)).config) != shift:
            if time.monotonic() > give_up:
                raise ConnectionError("W&B does not take the config of the run")
            time.sleep(POLL_S)
        self._shift = shift

    def _last_step(self) -> int:
        return int(self._public_run().lastHistoryStep)

    def _last_seq(self) -> int:
        return self._shift.seq_of(self._last_step())

    def _expect_progress(self) -> None:
        now = time.monotonic()
        self._ask_at, self._stalled_at = now + ASK_EVERY_S, now + STALLED_S

    def _confirm(self, patience_s: float) -> None:
        """After a refusal the client stops uploading without an error: only the server knows what it has."""
        held, give_up = -1, time.monotonic() + patience_s
        while (now := self._last_step()) < self._sent_step:
            if now > held:
                held, give_up = now, time.monotonic() + patience_s
            if time.monotonic() > give_up:
                raise ConnectionError(f"W&B holds records up to {held} of {self._sent_step}")
            time.sleep(POLL_S)


def _quiet_settings(*, online: bool) -> wandb.Settings:
    """Nothing but what the journal holds: no console, code, git, machine or process data of the delivery process."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        init_timeout=INIT_TIMEOUT_S,
        x_skip_transaction_log=online,  # the journal has everything
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_file_stream_retry_max=RETRIES,
        x_graphql_retry_max=RETRIES,
    )


def wandb_key(name: str) -> str:
    """The key of a metric; distinct names have distinct keys. W&B hides keys that begin with an underscore or takes
    them for its own, and the x axis is one of ours."""
    key = escaped(name, _FORBIDDEN)
    is_taken = key in ("", X_AXIS) or key.startswith(("_", METRIC))
    return f"{METRIC}{key}" if is_taken else key


def name_of_wandb_key(key: str) -> str:
    """The inverse of `wandb_key`."""
    return unescaped(key.removeprefix(METRIC))


class BestValues:
    """Starts with the values that are known; metrics that the schema does not declare, or gives no direction, have
    none."""

    def __init__(self, known: Mapping[str, float]) -> None:
        self._best = dict(known)
        self._directions: dict[str, Direction] = {}

    def improved_by(self, records: Sequence[Record]) -> dict[str, float]:
        """The best values that records of kind `metrics` changed; NaN and infinities are never best."""
        names = {name for record in records for name in record.data}
        if new := names - self._directions.keys():
            schema = MetricSchema.covering(new)
            self._directions |= {name: schema[name].direction if name in schema else Direction.NONE for name in new}
        changed: dict[str, float] = {}
        for record in records:
            for name, value in record.data.items():
                if math.isfinite(value) and self._is_better(name, value):
                    self._best[name] = changed[name] = value
        return changed

    def _is_better(self, name: str, value: float) -> bool:
        match self._directions[name]:
            case Direction.LOWER:
                return value < self._best.get(name, math.inf)
            case Direction.HIGHER:
                return value > self._best.get(name, -math.inf)
            case _:
                return False

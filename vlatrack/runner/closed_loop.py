"""Evaluate a policy in a simulator: `vlatrack evaluate RUN EVALUATION.yaml`."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vlatrack.builders.evaluation import build_execution, build_view, plan_episodes
from vlatrack.builders.simulator import SimulatorBuild, build_simulator, check_tasks, known_tasks
from vlatrack.builders.trackers import build_backends
from vlatrack.envs.watched import Simulator, WatchedWorker, checked, ending_on_sigterm, opened
from vlatrack.envs.worker import Opened
from vlatrack.errors import SimulatorError, SpecError
from vlatrack.evaluation.actors import Actor, Expert, PolicyActor
from vlatrack.evaluation.closed_loop import ClosedLoop, EpisodeResult, PlannedEpisode, TimeSpent
from vlatrack.evaluation.comparison import success_by_task, success_rate, task_mean
from vlatrack.evaluation.episodes import EpisodeTable
from vlatrack.evaluation.rows import SHOWN_TABLE, EpisodeRow
from vlatrack.inference.observation import Interface
from vlatrack.inference.policy import ChunkPolicy
from vlatrack.metrics.schema import simulation_name
from vlatrack.runner.directory import RunDirectory, find_checkpoint
from vlatrack.runner.episode_videos import EpisodeVideos
from vlatrack.runner.evaluated import Subject, is_address, served_subject, stored_subject
from vlatrack.runner.evaluation_folder import EvaluationFolder
from vlatrack.runner.evaluation_record import EvaluationFiles, EvaluationRecord, record_evaluation
from vlatrack.runner.fit import check_fit
from vlatrack.serving.connection import shown_address
from vlatrack.spec.evaluation import EvaluationSpec, set_digest
from vlatrack.spec.load import load_evaluation
from vlatrack.tracking.backends.base import DatasetInput
from vlatrack.tracking.backends.registry import check_backend
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.evaluated import EVALUATION_SET, Result

_OTHERS_S = 0.5
"""Between two looks at the episodes that other processes run."""
EVENT = "simulation"
"""The event in the journal of a run."""

OnEpisode = Callable[[Sequence[EpisodeRow], int], None]
"""Is told the rows so far and the number of all episodes: at the beginning, and whenever an episode ends."""


@dataclass(frozen=True)
class Options:
    """How an evaluation is carried out; none of it decides its result."""

    workers: int = 1  # simulators that run at the same time
    videos: int = 8  # at most, of failures first
    timeout_s: float = 120.0  # for each answer of a simulator
    output: Path | None = None  # the folder; None: in the run, or in the exported policy
    force: bool = False  # evaluate although policy and simulator do not fit together
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where the policy acts; auto: a GPU if there is one
    beside_training: bool = False  # the run's own process records it; what else is in the folder is moved aside
    api_key: str | None = field(default=None, repr=False)  # of the server of a policy


@dataclass(frozen=True)
class SimulatedEvaluation:
    """An evaluation that is complete."""

    folder: Path
    table: EpisodeTable
    rows: Sequence[EpisodeRow]
    metrics: Mapping[str, float]  # by full name, such as sim/metaworld/success
    digest: str  # of the episode set
    forced: Sequence[str]  # where policy and evaluation do not fit together
    record: EvaluationRecord | None = None  # for the run's journal; None: there is no run, or the folder is elsewhere
    delivery: DeliveryReport | None = field(default=None, compare=False)
    unknown: Sequence[str] = ()  # what was not compared, since the checkpoint does not tell how its data were made
    spent: TimeSpent = field(default_factory=TimeSpent, compare=False)  # by this process, on the episodes that it ran


def evaluate_in_simulator(
    path: str | Path,
    evaluation: str | Path,
    *,
    checkpoint: str | None = None,
    overrides: Iterable[str] = (),
    options: Options | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    on_episode: OnEpisode = lambda _, __: None,
) -> SimulatedEvaluation:
    """Let a policy act in the episodes that an evaluation's YAML describes, and record how they end.

    Episodes that have ended are in the folder's table, and are not run again when a killed evaluation is repeated. On a
    CPU the same checkpoint and set give the same table, but for the latencies. The metrics of a run's checkpoint go
    into its journal and trackers, at the checkpoint's step, unless ``options.output`` is a folder elsewhere.

    Args:
        path: a run, one of its checkpoints, an exported policy, or ``ws://HOST:PORT``: a server of openpi's protocol.
        checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
        overrides: ``key=value`` changes to the evaluation, such as ``episodes=5``.

    Raises:
        VlatrackError: there is no such policy, the simulator is missing or lacks a task, policy and simulator do not
            fit together, or the folder holds another evaluation.
    """
    options = options or Options()
    spec = load_evaluation(evaluation, tuple(overrides))
    if (tasks := known_tasks(spec)) is not None:
        check_tasks(spec, tasks)
    build = build_simulator(spec)
    subject = _subject(spec, path, checkpoint, options, on_stage)
    with ending_on_sigterm(), closing(subject):
        on_stage(f"starting {spec.suite.name}")
        there, wrong = _look_at(Simulator(build.name, build.options, options.timeout_s))
        check_tasks(spec, there.tasks)
        policy = subject.policy_for(there.info)
        interface = policy.interface
        forced = [*_check_simulator(spec, wrong, force=options.force)]
        forced += _check_fit(spec, interface, subject.name, there, route=subject.route, force=options.force)
        episodes = list(plan_episodes(spec))
        folder = EvaluationFolder.open(
            options.output or subject.folder,
            _description(spec, build, subject, interface, forced),
            [episode.id for episode in episodes],
            set_aside=options.beside_training,
        )
        with closing(folder), _some_threads():
            numbers = {episode.id: episode.number for episode in episodes}
            videos = EpisodeVideos(folder, numbers, most=options.videos, fps=there.info.fps)
            actor = _actor(spec, policy, there, together=subject.together)
            loop = _loop(spec, build, actor, there, folder, options)
            _run(loop, episodes, folder, videos, on_episode)
            with folder.finishing():
                found = _finish(spec, build, subject, folder, videos, forced)
                found = replace(found, unknown=_unknown(spec, interface), spent=loop.spent)
                return found if options.beside_training else _recorded(found, subject.run)


def _recorded(found: SimulatedEvaluation, run: RunDirectory | None) -> SimulatedEvaluation:
    """The evaluation, which the journal and the trackers of its run have."""
    if found.record is None or run is None or found.record.is_in(run.journal):
        return found
    return replace(found, delivery=record_evaluation(run, found.record))


def _subject(
    spec: EvaluationSpec,
    path: str | Path,
    checkpoint: str | None,
    options: Options,
    on_stage: Callable[[str], None],
) -> Subject:
    """What is evaluated; its trackers, if there are any, can be used."""
    if is_address(path):
        if checkpoint is not None:
            raise SpecError(f"--checkpoint {checkpoint}: the server has chosen one; leave it out")
        on_stage(f"connecting to {shown_address(str(path))}")
        return served_subject(spec, str(path), api_key=options.api_key, timeout_s=options.timeout_s)
    chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
    for backend in [] if run is None or options.output else build_backends(run.spec().tracking.backends):
        check_backend(backend)  # now rather than after the episodes
    on_stage(f"loading {chosen.name}")
    return stored_subject(spec, chosen, run, device=options.device)


def check_evaluation(spec: EvaluationSpec, interface: Interface, name: str, *, timeout_s: float) -> None:
    """Start the simulator of an evaluation once, and check that it works and that a policy can act in it.

    Args:
        interface: of the policy.
        name: what the policy is called in a message.

    Raises:
        VlatrackError: the simulator is missing, does not start or lacks a task, or the policy does not fit it.
    """
    build = build_simulator(spec)
    there, wrong = _look_at(Simulator(build.name, build.options, timeout_s))
    check_tasks(spec, there.tasks)
    _check_simulator(spec, wrong, force=False)
    _check_fit(spec, interface, name, there, force=False)


@contextmanager
def _some_threads() -> Iterator[None]:
    """Leave half of the cores to the simulators: threads that wait for a core slow a small policy down tenfold. The
    number does not depend on the workers, so neither do the last bits of an action."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, (os.cpu_count() or 1) // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _look_at(simulator: Simulator) -> tuple[Opened, tuple[str, ...]]:
    """What the simulator is, and what it finds wrong with itself, from a worker for that alone; a second one if the
    first is killed.

    Raises:
        VlatrackError: it does not start.
    """
    for first in (True, False):
        worker = WatchedWorker(simulator)
        try:
            there, wrong = opened(worker), checked(worker)
            worker.close()
            return there, wrong
        except SimulatorError:
            if not first:
                raise
        finally:
            worker.kill()
    raise AssertionError("the second either answers or raises")


def _check_simulator(spec: EvaluationSpec, wrong: Sequence[str], *, force: bool) -> Sequence[str]:
    """What is wrong with the simulator, for the result to record.

    Raises:
        SimulatorError: there is something, and ``force`` is false.
    """
    if wrong and not force:
        raise SimulatorError(
            f"{spec.suite.name}: {'; '.join(wrong)}; install the version that the results of others are from "
            "(make simulators), or evaluate anyway with --force, which the result records"
        )
    return wrong


def _check_fit(
    spec: EvaluationSpec, interface: Interface, name: str, there: Opened, *, route: str | None = None, force: bool
) -> list[str]:
    """Where policy and simulator do not fit together, for the result to record.

    Raises:
        SpecError: there is such a place, and ``force`` is false; or there is no expert to act.
    """
    if spec.acting.expert:
        if not there.has_expert:
            raise SpecError(f"acting.expert: {spec.suite.name} has no scripted expert; leave it out")
        return []
    return check_fit(spec, interface, policy=name, info=there.info, route=route, force=force)


def _description(
    spec: EvaluationSpec, build: SimulatorBuild, subject: Subject, interface: Interface, forced: Sequence[str]
) -> dict[str, Any]:
    return {
        "name": spec.name,
        "digest": set_digest(spec.set_settings(), build.versions),
        "set": spec.set_settings(),
        "versions": build.versions,
        "acting": spec.acting.settings(),
        "policy": "expert" if spec.acting.expert else subject.name,
        "checkpoint": None if subject.checkpoint is None else subject.checkpoint.name,
        "policy_sha256": None if spec.acting.expert else subject.sha256,
        "statistics": None if spec.acting.expert else interface.statistics,
        "server": subject.server,
        "forced": list(forced),
        "unknown": _unknown(spec, interface),
    }


def _unknown(spec: EvaluationSpec, interface: Interface) -> list[str]:
    """What cannot be compared."""
    return [] if spec.acting.expert else interface.recorded.unknown(interface.cameras)


def _loop(
    spec: EvaluationSpec,
    build: SimulatorBuild,
    actor: Actor,
    there: Opened,
    folder: EvaluationFolder,
    options: Options,
) -> ClosedLoop:
    camera = next((name for name in spec.cameras if name in there.info.cameras), None)
    return ClosedLoop(
        Simulator(build.name, build.options, options.timeout_s, folder.path / "workers.log"),
        actor,
        max_steps=spec.max_steps,
        camera=camera if options.videos else None,
        rotated=spec.rotation == 180,
        workers=options.workers,
    )


def _run(
    loop: ClosedLoop,
    episodes: Sequence[PlannedEpisode],
    folder: EvaluationFolder,
    videos: EpisodeVideos,
    on_episode: OnEpisode,
) -> None:
    """Run the episodes that have not ended and that no other process runs, until all have ended."""
    on_episode(folder.rows, len(episodes))

    def keep(result: EpisodeResult) -> None:
        folder.append(_row(result, videos.add(result)))
        on_episode(folder.rows, len(episodes))

    while True:
        loop.run((episodes[number] for number in iter(folder.claim, None)), keep)
        on_episode(folder.rows, len(episodes))
        if folder.is_complete:
            return
        time.sleep(_OTHERS_S)


def _actor(spec: EvaluationSpec, policy: ChunkPolicy, there: Opened, *, together: bool) -> Actor:
    if spec.acting.expert:
        return Expert()
    return PolicyActor(
        policy,
        build_view(spec),
        action_dim=there.info.action_dim,
        route=spec.acting.route,
        execution=build_execution(spec),
        gripper=spec.acting.gripper,
        together=together,
        fps=there.info.fps,
    )


def _row(result: EpisodeResult, video: str) -> EpisodeRow:
    return EpisodeRow.of(
        result.episode.id,
        result.outcome,
        steps=result.steps,
        reward=result.reward,
        latencies=result.latencies,
        video=video,
        reason=result.reason,
    )


def _finish(
    spec: EvaluationSpec,
    build: SimulatorBuild,
    subject: Subject,
    folder: EvaluationFolder,
    videos: EpisodeVideos,
    forced: Sequence[str],
) -> SimulatedEvaluation:
    """Write the summary."""
    table = EpisodeTable.of(spec.label, ((row.id, row.outcome) for row in folder.rows))
    by_task = success_by_task(table)
    summary = {
        **success_rate(table).content(),
        "task_mean": task_mean(by_task),
        "tasks": {task: rate.content() for task, rate in by_task.items()},
    }
    folder.finish(videos.settle(), summary)
    metrics, digest = _metrics(spec.metric_group, table), set_digest(spec.set_settings(), build.versions)
    record, run = None, subject.run
    if run is not None and folder.path.resolve().is_relative_to(run.evaluation.resolve()):
        record = _record(spec, run, folder, metrics, digest)
    return SimulatedEvaluation(folder.path, table, tuple(folder.rows), metrics, digest, forced, record)


def _metrics(group: str, table: EpisodeTable) -> dict[str, float]:
    by_task = success_by_task(table)
    metrics: dict[str, float] = {}
    for task, rate in ((None, success_rate(table)), *by_task.items()):
        if rate.rate is not None:
            low, high = rate.wilson
            values = {"success": rate.rate, "success_low": low, "success_high": high}
            metrics |= {simulation_name(group, measure, task): value for measure, value in values.items()}
        metrics[simulation_name(group, "episodes", task)] = rate.episodes
        metrics[simulation_name(group, "errors", task)] = rate.errors
    if (mean := task_mean(by_task)) is not None:
        metrics[simulation_name(group, "task_mean")] = mean
    return metrics


def _record(
    spec: EvaluationSpec, run: RunDirectory, folder: EvaluationFolder, metrics: Mapping[str, float], digest: str
) -> EvaluationRecord:
    """What the trackers get: metrics, the episode set as the data they were measured on, table and videos."""
    told = folder.content
    source = json.dumps({"set": told["set"], "versions": told["versions"]})
    name = f"evaluation/{folder.path.resolve().relative_to(run.evaluation.resolve()).as_posix()}"
    return EvaluationRecord(
        EVENT,
        {"name": spec.label, "digest": digest, "folder": folder.path.name},
        told["checkpoint"],
        told["policy_sha256"],
        [Result(DatasetInput(spec.name, source, digest, EVALUATION_SET), metrics)],
        [EvaluationFiles(name, folder.path, only=folder.results, table=SHOWN_TABLE)],
    )

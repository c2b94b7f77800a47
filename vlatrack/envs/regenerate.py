"""LIBERO's HDF5 files, repeated in the simulator and written as a LeRobot dataset, as RynnVLA-002 prepares its data."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from vlatrack.data.digests import digests_of
from vlatrack.data.formats.hdf5.demonstrations import Order, demonstration_files, demonstration_groups
from vlatrack.data.formats.hdf5.reading import open_file
from vlatrack.data.formats.lerobot.files import writing
from vlatrack.envs.kept_attempts import installed_versions
from vlatrack.envs.record import Attempts, Demonstration
from vlatrack.envs.replay import Replays, Stored, executed_steps, stored_actions, stored_state
from vlatrack.errors import DataError, SimulatorError

SEED = 0
"""Of each task's simulator, from which its resets draw where cabinets and stoves stand; RynnVLA-002's and OpenVLA's."""
WAITS = 10
"""Env steps in which objects settle, with an open gripper."""
NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@dataclass(frozen=True)
class Dropped:
    """A demonstration that is not in the new dataset; without a group all of its file."""

    file: str
    group: str
    reason: str


@dataclass(frozen=True)
class Kept:
    """An episode of the new dataset."""

    episode: int
    file: str
    group: str
    steps: int
    no_ops: int  # steps of the demonstration that are not in it


@dataclass
class Regeneration:
    """What became of each demonstration."""

    kept: list[Kept] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        """Why demonstrations were dropped, and how many, the most frequent first."""
        return dict(Counter(dropped.reason for dropped in self.dropped).most_common())

    def write(self, path: Path, settings: dict[str, object]) -> None:
        """Write it as JSON, with what the outcome depends on."""
        content = {
            "settings": settings,
            "packages": installed_versions(),
            "demonstrations": len(self.kept) + len(self.dropped),
            "kept": [asdict(kept) for kept in self.kept],
            "dropped": [asdict(dropped) for dropped in self.dropped],
        }
        unfinished = path.with_name(path.name + ".partial")
        with writing(path):
            unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            unfinished.replace(path)


@dataclass(frozen=True)
class Plan:
    """What is to be repeated."""

    tasks: list[Replays]
    damaged: list[Dropped]
    longest: int  # steps of a demonstration

    @property
    def demonstrations(self) -> int:
        """How many are repeated."""
        return sum(len(replays.demonstrations) for replays in self.tasks)


ProgressCallback = Callable[[Replays, Regeneration], None]
"""The task of a demonstration that is done, and what became of all until now."""


def make_plan(path: Path, *, order: Order = "name", skip_no_ops: bool = True) -> Plan:
    """Look through the files for demonstrations that can be repeated; those that cannot be read are dropped.

    Args:
        path: the folder, or one file.
        order: of the episodes of each task; `name`, as RynnVLA-002 sorts them, lets `part: last_tenth` be its split.

    Raises:
        DataError: there are no files, or no demonstration has what is needed.
    """
    tasks, damaged, longest = list[Replays](), list[Dropped](), 0
    for file in demonstration_files(path):
        found, bad, steps = _look_into(file, order, skip_no_ops=skip_no_ops)
        damaged += bad
        longest = max(longest, steps)
        if found:
            digest = digests_of(file.parent, [file])[file.name]
            name = file.stem.removesuffix("_demo")
            tasks.append(Replays(name, str(file), digest, tuple(found), SEED, WAITS, NO_OP, skip_no_ops))
    if not tasks:
        raise DataError(f"{path}: no demonstration can be repeated; the first: {damaged[0].reason}")
    return Plan(tasks, damaged, longest)


def _look_into(file: Path, order: Order, *, skip_no_ops: bool) -> tuple[list[Stored], list[Dropped], int]:
    """What can be repeated of a file, what cannot, and the most steps of a demonstration."""
    found, damaged, longest = list[Stored](), list[Dropped](), 0
    try:
        with open_file(file) as stored:
            numbers = {group: number for number, group in enumerate(demonstration_groups(stored, "number"))}
            for group in demonstration_groups(stored, order):
                try:
                    stored_state(stored, group)
                    actions = stored_actions(stored, group, len(NO_OP))
                except DataError as error:
                    damaged.append(Dropped(file.name, group, str(error)))
                    continue
                if len(executed_steps(actions, skip_no_ops=skip_no_ops)) == 0:
                    damaged.append(Dropped(file.name, group, "the robot never moves"))
                    continue
                found.append(Stored(group, numbers[group], len(actions)))
                longest = max(longest, len(actions))
    except DataError as error:
        damaged.append(Dropped(file.name, "", str(error)))
    return found, damaged, longest


def regenerate(
    attempts: Attempts,
    plan: Plan,
    *,
    output: Path,
    report: Path,
    settings: dict[str, object],
    storage: Literal["video", "png"] = "png",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Regeneration:
    """Repeat every demonstration, and write those that succeed into a LeRobot v3.0 dataset.

    Args:
        attempts: in the simulator of the files.
        output: the folder of the new dataset.
        report: a JSON file, which says what became of each demonstration; it is there before the dataset is.
        settings: for the report.
        progress: called after each demonstration.

    Raises:
        DataError: none succeeds, a state is not of this simulator, or the folder is in use or cannot be written.
        SimulatorError: the simulator breaks in the first demonstration already.
    """
    from vlatrack.data.formats.lerobot.writer import LeRobotWriter  # which workers do not wait for

    info, result = attempts.info, Regeneration(dropped=list(plan.damaged))
    with LeRobotWriter(
        output,
        fps=info.fps,
        robot_type=info.robot,
        cameras=info.cameras,
        action_names=info.action_names,
        state_names=info.state_names,
        storage=storage,
        overwrite=overwrite,
    ) as writer:
        for replays in plan.tasks:
            for stored, outcome in _outcomes(attempts, replays):
                if isinstance(outcome, SimulatorError) and not result.kept:
                    raise outcome
                for found in () if isinstance(outcome, SimulatorError) else outcome:
                    writer.add_episode(
                        task=found.instruction, actions=found.actions, states=found.states, frames=found.frames
                    )
                _note(result, replays, stored, outcome)
                if progress is not None:
                    progress(replays, result)
        result.write(report, settings)
        if not result.kept:
            raise DataError(f"{output}: no demonstration succeeded in the simulator; {report} says why")
    return result


def _outcomes(
    attempts: Attempts, replays: Replays
) -> Iterator[tuple[Stored, Sequence[Demonstration] | SimulatorError]]:
    """What comes of each demonstration; one that breaks the simulator again and again does not end the others."""
    number = 0
    while number < len(replays.demonstrations):
        with closing(attempts.of(replays, number)) as made:
            try:
                for found in made:
                    number += 1
                    yield replays.demonstrations[number - 1], found
            except SimulatorError as error:
                number += 1
                yield replays.demonstrations[number - 1], error


def _note(
    result: Regeneration, replays: Replays, stored: Stored, outcome: Sequence[Demonstration] | SimulatorError
) -> None:
    file = Path(replays.file)
    if isinstance(outcome, SimulatorError):
        result.dropped.append(Dropped(file.name, stored.group, str(outcome)))
    elif not outcome:
        result.dropped.append(Dropped(file.name, stored.group, "the task is not achieved at its end"))
    else:
        steps = len(outcome[0].actions)
        result.kept.append(Kept(len(result.kept), file.name, stored.group, steps, stored.steps - steps))

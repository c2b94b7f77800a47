"""The tables and figures of an open-loop evaluation, beside its JSON file."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vlatrack.metrics.declarations import action_error_grids, calibration_table
from vlatrack.reports.action_errors import action_error_table
from vlatrack.reports.calibration import draw_calibration
from vlatrack.reports.error_heat_maps import draw_error_grids
from vlatrack.reports.frames import ShownFrames, draw_frames
from vlatrack.reports.tasks import TaskMetrics, draw_tasks, task_table
from vlatrack.reports.trajectories import draw_trajectories
from vlatrack.runner.directory import write_in_run
from vlatrack.runner.open_loop_details import SplitDetails

Beside = Callable[[str], Path]
"""The path of a file by the ending of its name."""


def write_files(
    by_split: Mapping[str, SplitDetails], tasks: TaskMetrics, file: Path, *, name: str, image_decoder: str | None
) -> list[Path]:
    """Write what there is something to show of; returns the paths.

    Args:
        file: the JSON file of the evaluation, whose name the others begin with.
        name: of experiment and checkpoint, for titles.
        image_decoder: how codes became pixels, for titles.

    Raises:
        RunError: the disk is full, or a table cannot be written.
    """

    def beside(ending: str) -> Path:
        return file.with_name(f"{file.stem}-{ending}")

    written = _write_errors(by_split, tasks, beside, name)
    for split, details in by_split.items():
        if details.trajectories:
            figure = beside(f"trajectories-{split}.png")
            title = f"{name}: actions in the recorded observations of {split}, in the units of the data"
            draw_trajectories(details.trajectories, details.action_names, figure, title=title)
            written.append(figure)
        if rows := list(_frame_rows(details)):
            figure = beside(f"frames-{split}.png")
            draw_frames(rows, figure, title=f"{name}: next images of {split}\ndecoder: {image_decoder}")
            written.append(figure)
    return written


def _write_errors(by_split: Mapping[str, SplitDetails], tasks: TaskMetrics, beside: Beside, name: str) -> list[Path]:
    """By chunk step and dimension, by task, and by confidence."""
    grids = {split: action_error_grids(details.states) for split, details in by_split.items()}
    panels = {(split, route): (grid, "") for split, routes in grids.items() for route, grid in routes.items()}
    calibration = {split: calibration_table(details.states) for split, details in by_split.items()}
    tables = {"action-errors.csv": action_error_table(grids), "tasks.csv": task_table(tasks)}
    for ending, table in tables.items():
        write_in_run(beside(ending), table)
    drawn = {
        "action-errors.png": draw_error_grids(panels, beside("action-errors.png"), run_name=name),
        "tasks.png": draw_tasks(tasks, beside("tasks.png"), title=f"{name}: L1 error by task"),
        "calibration.png": draw_calibration(
            calibration, beside("calibration.png"), title=f"{name}\ncalibration of the action tokens"
        ),
    }
    return [beside(ending) for ending in (*tables, *(ending for ending, there_is in drawn.items() if there_is))]


def _frame_rows(details: SplitDetails) -> Iterator[ShownFrames]:
    for frames in details.frames:
        position, step = frames.place
        generated = None if frames.generated is None else frames.generated.images
        for camera, recorded in enumerate(frames.recorded):
            which = f"\ncamera {camera}" if len(frames.recorded) > 1 else ""
            yield ShownFrames(
                f"episode {details.episodes[position]}\nstep {step}{which}",
                recorded,
                frames.ceiling[camera],
                None if frames.predicted is None else frames.predicted[camera],
                None if generated is None else generated[camera],
                frames.copied[camera],
            )

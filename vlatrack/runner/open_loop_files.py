"""The tables and figures of an open-loop evaluation, beside its JSON file."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from vlatrack.metrics.declarations import action_error_grids, calibration_table
from vlatrack.reports.action_errors import action_error_table, draw_error_grids
from vlatrack.reports.calibration import draw_calibration
from vlatrack.reports.frames import ShownFrames, draw_frames
from vlatrack.reports.tasks import TaskMetrics, draw_tasks, task_table
from vlatrack.reports.trajectories import draw_trajectories
from vlatrack.runner.directory import write_in_run
from vlatrack.runner.open_loop_details import SplitDetails


def write_files(
    by_split: Mapping[str, SplitDetails], tasks: TaskMetrics, file: Path, *, name: str, image_decoder: str | None
) -> list[Path]:
    """Write what there is something to show of; returns the paths.

    Args:
        file: the JSON file of the evaluation, whose name the others begin with.
        name: of experiment and checkpoint, for titles.
        image_decoder: how codes became pixels, for titles.

    Raises:
        RunError: the disk is full, or a file cannot be written.
    """

    def beside(ending: str) -> Path:
        return file.with_name(f"{file.stem}-{ending}")

    grids = {split: action_error_grids(details.states) for split, details in by_split.items()}
    write_in_run(beside("action-errors.csv"), action_error_table(grids))
    write_in_run(beside("tasks.csv"), task_table(tasks))
    written = [beside("action-errors.csv"), beside("tasks.csv")]
    panels = {(split, route): (grid, "") for split, routes in grids.items() for route, grid in routes.items()}
    if draw_error_grids(panels, beside("action-errors.png"), run_name=name):
        written.append(beside("action-errors.png"))
    if draw_tasks(tasks, beside("tasks.png"), title=f"{name}: L1 error by task"):
        written.append(beside("tasks.png"))
    calibration = {split: calibration_table(details.states) for split, details in by_split.items()}
    if draw_calibration(calibration, beside("calibration.png"), title=f"{name}\ncalibration of the action tokens"):
        written.append(beside("calibration.png"))
    for split, details in by_split.items():
        if details.trajectories:
            figure = beside(f"trajectories-{split}.png")
            title = f"{name}: actions in the recorded observations of {split}, in the units of the data"
            draw_trajectories(details.trajectories, details.action_names, figure, title=title)
            written.append(figure)
        if rows := list(_frame_rows(details)):
            draw_frames(
                rows, beside(f"frames-{split}.png"), title=f"{name}: next images of {split}\ndecoder: {image_decoder}"
            )
            written.append(beside(f"frames-{split}.png"))
    return written


def _frame_rows(details: SplitDetails) -> Iterator[ShownFrames]:
    for frames in details.frames:
        position, step = frames.place
        for camera, recorded in enumerate(frames.recorded):
            which = f"\ncamera {camera}" if len(frames.recorded) > 1 else ""
            yield ShownFrames(
                f"episode {details.episodes[position]}\nstep {step}{which}",
                recorded,
                frames.ceiling[camera],
                None if frames.predicted is None else frames.predicted[camera],
                frames.copied[camera],
            )

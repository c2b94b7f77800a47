"""What statistics and checks cost beside reading the same files, through the same reader."""

from dataclasses import dataclass
from pathlib import Path

from vlatrack.bench.recorded_files import CAMERA, PairedCosts, write_dataset
from vlatrack.data.checks.scan import scan_dataset, scan_frames
from vlatrack.data.checks.times import check_times
from vlatrack.data.episodes import frame_pieces
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset

EPISODE_STEPS = 500
IMAGE_SIZE = 256


@dataclass(frozen=True)
class PassCosts:
    """Of one pass of statistics and checks, and of a pass that only reads."""

    steps: int
    costs: PairedCosts


def measure_numbers(folder: Path, *, steps: int, rounds: int) -> PassCosts:
    """Statistics and all checks of actions, states and times of a dataset, against reading these."""
    episodes = max(1, steps // EPISODE_STEPS)
    write_dataset(folder, episodes=episodes, steps=EPISODE_STEPS)
    costs = PairedCosts.measure(lambda: _check(folder), lambda: _read(folder), rounds=rounds)
    return PassCosts(episodes * EPISODE_STEPS, costs)


def measure_images(folder: Path, *, steps: int, rounds: int) -> PassCosts:
    """The same with all frames of a camera, as `vlatrack data validate --frames` looks at a dataset."""
    episodes = max(1, steps // EPISODE_STEPS)
    write_dataset(folder, episodes=episodes, steps=EPISODE_STEPS, image_size=IMAGE_SIZE)
    costs = PairedCosts.measure(lambda: _check(folder, frames=True), lambda: _read(folder, frames=True), rounds=rounds)
    return PassCosts(episodes * EPISODE_STEPS, costs)


def _check(folder: Path, *, frames: bool = False) -> None:
    source = LeRobotDataset(folder)
    scan = scan_dataset(source, skip_bad=False)
    found = [*scan.findings(), *check_times(source.name, source.fps, source.step_times())]
    if frames:
        total = sum(record.length for record in scan.records)
        found += scan_frames(source, source.episodes(), (CAMERA,), where=source.name, total=total)
    assert not any(finding.severity == "error" for finding in found), found


def _read(folder: Path, *, frames: bool = False) -> None:
    source = LeRobotDataset(folder)
    for episode in source.episodes():
        for _ in frame_pieces(source, episode, CAMERA) if frames else ():
            pass

"""A run that is killed at random moments goes on as if nothing had happened."""

from pathlib import Path

import pytest
from kill_storm import WITHOUT_DROPOUT, check_nothing_is_left, furthest_loss, storm, uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resumed_with", "settings", "within"), [((2,), (), 0.0), ((3, 1, 2), WITHOUT_DROPOUT, 1e-4)], ids=["2", "3, 1, 2"]
)
def test_a_run_of_two_processes_that_is_killed_three_times_has_the_losses_of_one_that_is_not(
    tmp_path: Path, resumed_with: tuple[int, ...], settings: tuple[str, ...], within: float
) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = uninterrupted(tmp_path / "whole", 15, processes=2, settings=settings)
    killed = storm(tmp_path / "killed", 15, kills=3, resumed_with=resumed_with, settings=settings)
    check_nothing_is_left(killed.run)
    assert furthest_loss(killed.run, whole) <= within

"""Names of experiments and projects that a tracker would refuse are refused before the training."""

import pytest
from happens import happens

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import check_backend


@happens(
    "item",
    "an experiment or a project has a name that its tracker refuses",
    "the training does not start; one line says what is allowed",
)
@pytest.mark.parametrize(
    ("kind", "option", "name", "told"),
    [
        ("mlflow", "experiment", "", "tracking: mlflow experiment '': use 1 to 500 letters"),
        ("mlflow", "experiment", "x" * 600, "use 1 to 500 letters"),
        ("wandb", "project", " ", "tracking: wandb project ' ': use 1 to 128 letters"),
        ("wandb", "project", "vla/track", "tracking: wandb project 'vla/track': '/' is not allowed there"),
    ],
)
def test_a_name_that_the_tracker_refuses_stops_the_run_before_it_starts(
    kind: str, option: str, name: str, told: str
) -> None:
    with pytest.raises(TrackerError) as refused:
        check_backend(BackendConfig(kind, options={option: name}))
    assert told in str(refused.value)


def test_a_name_in_the_environment_counts_like_one_in_the_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a:b")
    with pytest.raises(TrackerError, match="tracking: wandb WANDB_PROJECT 'a:b': ':' is not allowed there"):
        check_backend(BackendConfig("wandb"))
    check_backend(BackendConfig("wandb", options={"project": "vla"}))

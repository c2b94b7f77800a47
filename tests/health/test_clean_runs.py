"""No detector finds anything in runs that went well."""

import pytest
from health_curves import CLEAN, Line, curves, findings

from vlatrack.health.finding import HEALTHY, verdict
from vlatrack.health.monitor import MOST_NAMES, HealthMonitor
from vlatrack.health.thresholds import Thresholds


@pytest.mark.parametrize("run", CLEAN)
def test_a_clean_run_has_no_findings(run: str) -> None:
    found = findings(curves(run))
    assert found == []
    assert verdict(found) == HEALTHY


def test_every_detector_can_be_switched_off() -> None:
    lines = [Line(line.step, line.t_ms, dict.fromkeys(line.values, float("nan"))) for line in curves("quickstart-0")]
    assert findings(lines, Thresholds.of(dict.fromkeys(vars(Thresholds())))) == []


def test_names_without_end_and_chunks_of_billions_of_steps_take_no_memory() -> None:
    monitor = HealthMonitor()
    for number in range(40):
        names = [f"train_{number}_{other}" for other in range(100)] + ["train_l1_loss_action_999999999"]
        assert monitor.observe(dict.fromkeys(names, 1.0), step=number, t_ms=0) == []
    assert len(monitor._known) <= MOST_NAMES


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"spikes": {}}, "no detector is called 'spikes'"),
        ({"spike": {"zz": 1}}, "spike: takes z, factor, windows"),
        ({"spike": {"z": "8"}}, "spike.z: not a positive number"),
        ({"spike": {"windows": 1.5}}, "spike.windows: not a positive whole number"),
        ({"spike": {"windows": 10**9}}, "spike.windows: above 10000"),
        ({"spike": 3}, "spike: takes"),
    ],
)
def test_thresholds_that_there_are_not_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Thresholds.of(settings)


def test_thresholds_come_back_from_their_file_as_they_were() -> None:
    thresholds = Thresholds.of({"spike": None, "plateau": {"windows": 50}})
    assert Thresholds.from_json(thresholds.to_json()) == thresholds

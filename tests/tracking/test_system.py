"""Measurements of the machine: declared names, real values, at the training step of the moment."""

from collections.abc import Callable
from pathlib import Path

from vlatrack.metrics.schema import MetricSchema
from vlatrack.tracking.journal.history import metric_history
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.system import Machine, SystemSampler, gpu_metrics


def test_samples_stand_at_the_step_that_was_logged_last(run_dir: Path, eventually: Callable[..., None]) -> None:
    run = TrackedRun.start(run_dir, uid="u1", name="n", experiment="e", backends=[], params={}, tags={})
    run.log({"train_closs": 1.0}, step=7)
    with SystemSampler(run, every_s=0.01):
        eventually(lambda: "system/cpu_percent" in metric_history(run_dir / "journal.jsonl"), 20)
    run.finish("FINISHED")
    history = metric_history(run_dir / "journal.jsonl")
    assert [step for step, _ in history["system/process_memory_mib"]] == [7]
    assert history["system/process_memory_mib"][0][1] > 10
    assert 0 < history["system/memory_percent"][0][1] <= 100


def test_every_measurement_is_declared() -> None:
    schema = MetricSchema.for_experiment(horizon=5, action_dim=7)
    schema.check([*Machine().measure(), *gpu_metrics("37, 10240, 251.3\n" * 40)])


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert gpu_metrics("37, 10240, 251.3\n0, 5, [N/A]\n") == {
        "system/gpu_0_percent": 37.0,
        "system/gpu_0_memory_mib": 10240.0,
        "system/gpu_0_power_w": 251.3,
        "system/gpu_1_percent": 0.0,
        "system/gpu_1_memory_mib": 5.0,
    }

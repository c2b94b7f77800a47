"""Metrics of single tasks: their names, how many there are at most, and their declarations."""

from vlatrack.metrics.metric import Direction
from vlatrack.metrics.schema import MetricSchema
from vlatrack.metrics.tasks import MOST_TASKS, task_metric_values


def test_a_task_has_its_errors_under_its_instruction_and_they_are_declared() -> None:
    measured = {"loss_ct": 0.5, "l1_loss_action": 0.25, "closs": 2.0, "samples": 7.0, "z_loss": 1.0}
    values = task_metric_values("val_ood", {"open the window": measured})
    of_task = "evaluate/val_ood/task/open_the_window"
    assert values == {f"{of_task}/loss_ct": 0.5, f"{of_task}/l1_loss_action": 0.25, f"{of_task}/closs": 2.0}
    schema = MetricSchema.covering(values)
    assert all(schema[name].direction is Direction.LOWER for name in values)
    assert "val_ood, task open_the_window" in schema[f"{of_task}/closs"].meaning


def test_tasks_whose_names_would_be_the_same_stay_apart() -> None:
    names = ["lift a-2", "lift: a", "lift a", "lift, a", "?", "x" * 300]
    values = task_metric_values("val_ind", {task: {"closs": float(n)} for n, task in enumerate(names)})
    expected = ["lift_a-2", "lift_a", "lift_a-3", "lift_a-4", "task", "x" * 100]
    assert [name.split("/")[3] for name in values] == expected
    assert list(values.values()) == [0, 1, 2, 3, 4, 5]
    assert all(name in MetricSchema.covering(values) for name in values)


def test_many_tasks_are_left_to_the_table() -> None:
    tasks = {f"task {n}": {"closs": 1.0} for n in range(MOST_TASKS + 1)}
    assert task_metric_values("val_ind", tasks) == {}
    del tasks["task 0"]
    assert len(task_metric_values("val_ind", tasks)) == MOST_TASKS

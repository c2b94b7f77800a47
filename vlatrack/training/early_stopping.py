"""The end of a training whose metric does not get better any more."""

from collections.abc import Iterable

from vlatrack.metrics.schema import MetricSchema, split_and_name
from vlatrack.training.callback import Callback, EpochResults
from vlatrack.training.state import TrainState


class EarlyStopping(Callback):
    """Watches a metric, on the main process; other ranks have one that sees nothing.

    A metric that is measured beside the training comes later than its checkpoint, by `observe`.
    """

    def __init__(self, metric: str, *, patience: int, schema: MetricSchema) -> None:
        """
        Args:
            patience: values in a row that are not better than the best before.
        """
        self.metric, self._patience, self._schema = metric, patience, schema
        self._values: dict[int, float] = {}

    @property
    def has_values(self) -> bool:
        """Whether the metric was measured at all."""
        return bool(self._values)

    def observe(self, values: Iterable[tuple[int, float]]) -> None:
        """Take notice of the metric at some steps."""
        self._values.update(values)

    def on_epoch(self, state: TrainState, results: EpochResults) -> None:
        """Take notice of the metric, if it is one of the training's own."""
        split, name = split_and_name(self.metric)
        if split in results and (value := results[split].metrics.get(name)) is not None:
            self.observe([(state.step, value)])

    def on_rollback(self, state: TrainState, from_step: int) -> None:
        """Forget what was measured after the checkpoint."""
        self._values = {step: value for step, value in self._values.items() if step <= state.step}

    def reason_to_stop(self) -> str | None:
        """Why the training should end, in one line; None if it should go on."""
        best_step, best, worse = None, None, 0
        for step, value in sorted(self._values.items()):
            if self._schema.is_better(self.metric, value, best):
                best_step, best, worse = step, value, 0
            else:
                worse += 1
        if worse < self._patience:
            return None
        values = "value" if worse == 1 else f"{worse} values"
        if best is None:
            return f"the last {values} of {self.metric} are not finite"
        return f"no better than {best:.4g} at step {best_step} in the last {values} of {self.metric}"

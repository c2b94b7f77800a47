"""The best value so far of each metric that gets better in one direction, by the schema."""

import math
from collections.abc import Mapping, Sequence

from vlatrack.metrics.schema import Direction, MetricSchema
from vlatrack.tracking.journal.journal import Record


class BestValues:
    """Starts with the values that are known; metrics that the schema does not declare, or gives no direction, have
    none."""

    def __init__(self, known: Mapping[str, float]) -> None:
        self._best = dict(known)
        self._directions: dict[str, Direction] = {}

    def improved_by(self, records: Sequence[Record]) -> dict[str, float]:
        """The best values that records of kind `metrics` changed; NaN and infinities are never best."""
        names = {name for record in records for name in record.data}
        if new := names - self._directions.keys():
            schema = MetricSchema.covering(new)
            self._directions |= {name: schema[name].direction if name in schema else Direction.NONE for name in new}
        changed: dict[str, float] = {}
        for record in records:
            for name, value in record.data.items():
                if math.isfinite(value) and self._is_better(name, value):
                    self._best[name] = changed[name] = value
        return changed

    def _is_better(self, name: str, value: float) -> bool:
        match self._directions[name]:
            case Direction.LOWER:
                return value < self._best.get(name, math.inf)
            case Direction.HIGHER:
                return value > self._best.get(name, -math.inf)
            case _:
                return False

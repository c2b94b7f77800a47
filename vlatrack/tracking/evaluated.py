"""What an event says of the evaluation of a checkpoint, for trackers to tie its metrics to checkpoint and data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from vlatrack.tracking.backends.base import DatasetInput, RejectedError, RunEvent, Scalar

EVALUATION_SET = "evaluation"
"""The split of a set of episodes that policies are evaluated in."""
_RESULTS = "vlatrack.results"
"""The key that events of evaluations alone have; those of earlier releases have none."""


@dataclass(frozen=True)
class Result:
    """The metrics of a checkpoint on one dataset, by their names in the run."""

    dataset: DatasetInput
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of one checkpoint; its metrics are logged at `step`, with the time `t_ms` (Unix milliseconds)."""

    checkpoint: str
    step: int
    policy_sha256: str | None
    t_ms: int
    results: tuple[Result, ...]
    checkpoint_seq: int | None = None
    """The journal record of the checkpoint; None if another one acted in its place, such as a scripted expert."""

    @property
    def data(self) -> dict[str, Scalar]:
        """As the data of an event."""
        results = [{"dataset": asdict(result.dataset), "metrics": dict(result.metrics)} for result in self.results]
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "policy_sha256": self.policy_sha256,
            "t_ms": self.t_ms,
            "checkpoint_seq": self.checkpoint_seq,
            _RESULTS: json.dumps(results),
        }

    @classmethod
    def of(cls, event: RunEvent) -> Self | None:
        """The evaluation that an event tells of; None for any other event.

        Raises RejectedError for one that is damaged.
        """
        data = event.data
        if _RESULTS not in data:
            return None
        try:
            results = tuple(
                Result(DatasetInput(**result["dataset"]), {str(k): float(v) for k, v in result["metrics"].items()})
                for result in json.loads(str(data[_RESULTS]))
            )
            seq, sha256 = data["checkpoint_seq"], data["policy_sha256"]
            return cls(
                checkpoint=str(data["checkpoint"]),
                step=int(str(data["step"])),
                policy_sha256=None if sha256 is None else str(sha256),
                t_ms=int(str(data["t_ms"])),
                results=results,
                checkpoint_seq=None if seq is None else int(str(seq)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RejectedError(f"{event.name}: no evaluation can be read from it ({error!r})") from error

"""The thresholds of the detectors, with their defaults, and how a file holds them.

A window is one record of training metrics, every `tracking.log_every` steps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

MOST_WINDOWS = 10_000
"""Values of one metric that a detector may keep."""


@dataclass(frozen=True)
class NotFinite:
    windows: int = 1


@dataclass(frozen=True)
class Spike:
    z: float = 10.0
    factor: float = 2.0
    windows: int = 30


@dataclass(frozen=True)
class Divergence:
    factor: float = 2.5
    windows: int = 3


@dataclass(frozen=True)
class Plateau:
    windows: int = 400
    improvement: float = 0.03


@dataclass(frozen=True)
class Overfitting:
    rise: float = 0.2
    evaluations: int = 3


@dataclass(frozen=True)
class OneHead:
    learned: float = 0.3
    stuck: float = 0.05
    windows: int = 20


@dataclass(frozen=True)
class ZLoss:
    factor: float = 4.0


@dataclass(frozen=True)
class ChunkStep:
    factor: float = 2.0
    windows: int = 3


@dataclass(frozen=True)
class QuantisationFloor:
    factor: float = 1.2
    windows: int = 3


@dataclass(frozen=True)
class GradientBurst:
    factor: float = 4.0
    windows: int = 10


@dataclass(frozen=True)
class DataWait:
    share: float = 0.3
    windows: int = 3


@dataclass(frozen=True)
class Throughput:
    share: float = 0.6
    z: float = 5.0
    windows: int = 3
    seconds: float = 10.0


@dataclass(frozen=True)
class GpuIdle:
    percent: float = 10.0
    samples: int = 4


@dataclass(frozen=True)
class Thresholds:
    """Those of every detector, by its name; None: it is switched off."""

    not_finite: NotFinite | None = field(default_factory=NotFinite)
    spike: Spike | None = field(default_factory=Spike)
    divergence: Divergence | None = field(default_factory=Divergence)
    plateau: Plateau | None = field(default_factory=Plateau)
    overfitting: Overfitting | None = field(default_factory=Overfitting)
    one_head: OneHead | None = field(default_factory=OneHead)
    z_loss: ZLoss | None = field(default_factory=ZLoss)
    chunk_step: ChunkStep | None = field(default_factory=ChunkStep)
    quantisation_floor: QuantisationFloor | None = field(default_factory=QuantisationFloor)
    gradient_burst: GradientBurst | None = field(default_factory=GradientBurst)
    data_wait: DataWait | None = field(default_factory=DataWait)
    throughput: Throughput | None = field(default_factory=Throughput)
    gpu_idle: GpuIdle | None = field(default_factory=GpuIdle)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From plain mappings by detector: a detector that is missing has its defaults, null switches one off.

        Raises ValueError for a detector or a threshold that there is not, and for one that is no positive number.
        """
        known = {part.name: part.default_factory for part in fields(cls)}
        if unknown := settings.keys() - known.keys():
            raise ValueError(f"no detector is called {min(unknown)!r}")
        given: dict[str, Any] = {}
        for name, values in settings.items():
            kind = known[name]
            assert callable(kind), "every part has a default"
            given[name] = None if values is None else _checked(name, kind, values)
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; ValueError for anything else."""
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("no mapping of detectors")
        return cls.of(settings)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def any_on(self) -> bool:
        """Whether at least one detector is on."""
        return any(getattr(self, part.name) is not None for part in fields(self))


def _checked(name: str, kind: Any, values: Any) -> Any:
    types = {part.name: part.type for part in fields(kind)}
    if not isinstance(values, Mapping) or values.keys() - types.keys():
        raise ValueError(f"{name}: takes {', '.join(types)}")
    for key, value in values.items():
        is_number = type(value) in ((int,) if types[key] is int else (int, float))
        if not is_number or not math.isfinite(value) or not value > 0:
            raise ValueError(f"{name}.{key}: not a positive {'whole ' if types[key] is int else ''}number")
        if types[key] is int and value > MOST_WINDOWS:
            raise ValueError(f"{name}.{key}: above {MOST_WINDOWS}")
    return kind(**values)

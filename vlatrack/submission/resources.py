"""What a job gets of a cluster."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlatrack.errors import SubmitError

_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")
_CLOCK = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?")
_UNIT = re.compile(r"(\d+(?:\.\d+)?)([mhd])")
_MINUTES = {"m": 1, "h": 60, "d": 24 * 60}


@dataclass(frozen=True)
class Resources:
    """What is asked for; None leaves it to the cluster. GPUs, processes and memory are those of each node."""

    nodes: int = 1
    gpus: int = 0
    processes: int = 1
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    minutes: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: Sequence[str] = ()
    """shell commands before the training, of the command line alone: no file may name one"""
    more: Mapping[str, str] = field(default_factory=dict)
    """other options of sbatch, by their long names"""

    def __post_init__(self) -> None:
        texts = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint")} | dict(self.more)
        for name, text in texts.items():
            if text is not None and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
                raise SubmitError(f"--{name} {text!r}: a newline or another control character; leave it out")
        for name in self.more:
            if re.fullmatch(r"[a-z][a-z0-9-]*", name) is None:
                raise SubmitError(f"--sbatch {name}: no option of sbatch has such a name; write it as reservation=NAME")

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes


def parse_minutes(text: str) -> int:
    """A time limit as Slurm has it (``90``, ``8:00:00``, ``2-12``) or as ``90m``, ``8h``, ``2d``, in minutes

    Raises:
        SubmitError: it is none, or zero.
    """
    if found := _UNIT.fullmatch(text):
        seconds = float(found[1]) * _MINUTES[found[2]] * 60
    elif found := _DAYS.fullmatch(text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif found := _CLOCK.fullmatch(text):
        parts = [int(part) for part in found.groups() if part is not None]
        of_a_part = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(parts)]
        seconds = sum(part * unit for part, unit in zip(parts, of_a_part, strict=True))
    else:
        raise SubmitError(f"--time {text}: expected a time such as 90 (minutes), 8h, 2d, 8:00:00 or 2-12:00:00")
    if seconds <= 0:
        raise SubmitError(f"--time {text}: no time at all; give some, such as 8h")
    return math.ceil(seconds / 60)

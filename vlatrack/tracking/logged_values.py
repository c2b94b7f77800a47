"""What a training logs, as numbers: a training must not end because of a value that is none."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeVar

from vlatrack.tracking.arguments import ENDS_THE_PROGRAM, called, checked_time, described, shown
from vlatrack.tracking.journal.encoding import sendable
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.secret_shapes import HIDDEN

_INT64 = range(-(2**63), 2**63)
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class LoggedValues:
    """Makes numbers of whatever `log` is given; what cannot be logged is left out, with one warning for each name.

    Nothing is raised, whatever the code of the values raises, except what ends the program: KeyboardInterrupt,
    SystemExit and GeneratorExit.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.safe_names: set[str] = set()
        """Names of metrics that were found to hold no secret, each looked at once: that takes longer than to log it."""

    def numbers(self, metrics: object) -> dict[str, float]:
        """The values that are numbers of Python, numpy or torch, by their names as text."""
        nothing: list[tuple[Any, Any]] = []
        found: dict[str, float] = {}
        for name, value in self._converted(_pairs, metrics, nothing, "metrics are not logged"):
            text = (
                name
                if type(name) is str
                else self._converted(_text, name, None, "a metric is not logged: its name is no text")
            )
            number = self._converted(_number, value, None, f"metric {text} is not logged: it is no number")
            if text is not None and number is not None:
                found[text] = number
        return found

    def without_secrets(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values, with `***` in place of each secret in a name."""
        found: dict[str, float] = {}
        for name, value in metrics.items():
            if name not in self.safe_names:
                shown_name = self._converted(redact, name, HIDDEN, "a metric is logged as ***: its name is unreadable")
                if shown_name != name:
                    found[shown_name] = value
                    continue
                self.safe_names.add(name)
            found[name] = value
        return found

    def step(self, step: object, *, instead: int) -> int:
        """The step as the trackers store it, a whole number of 64 bits; `instead` if it is none."""
        return self._converted(_whole, step, instead, "a step is no whole number: its metrics stand at the step before")

    def time(self, t_ms: object) -> int | None:
        """Unix milliseconds; None, which means now, if they are none."""
        return self._converted(checked_time, t_ms, None, "a t_ms is no time: its metrics stand at the present")

    def _converted(self, convert: Callable[[Any], _T], value: object, instead: _T, failure: str) -> _T:
        try:
            return convert(value)
        except ENDS_THE_PROGRAM:
            raise
        except BaseException as error:  # libraries written in Rust raise one that is no Exception
            if failure not in self._told:
                self._told.add(failure)
                _log.warning("%s", sendable(" ".join(f"{failure} ({described(error)})".split())))
            return instead


def _pairs(metrics: object) -> list[tuple[Any, Any]]:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{called(metrics)} is no mapping of names to numbers")
    return [(name, value) for name, value in metrics.items()]


def _text(name: object) -> str:
    return "".join(str(name))  # `str` may return an object of a class derived from it


def _number(value: object) -> float:
    if not isinstance(value, SupportsFloat):
        raise TypeError(called(value))
    return float(value)


def _whole(step: Any) -> int:
    whole = int(step)
    if whole != step:
        raise ValueError(f"it is {shown(step)}")
    if whole not in _INT64:
        raise ValueError("trackers store 64 bits")
    return whole

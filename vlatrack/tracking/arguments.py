"""What a user passes to a run, checked and made plain before anything is written."""

import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsFloat, get_args

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig, DatasetInput, Scalar, Status, scalar_text
from vlatrack.tracking.backends.registry import backend_config
from vlatrack.tracking.journal.encoding import sendable
from vlatrack.tracking.journal.records import UID
from vlatrack.tracking.privacy import redact, redact_param

ENDS_THE_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)
_EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999, beyond which neither Python nor a tracker has dates."""


def checked_uid(uid: str) -> str:
    """What identifies a run at every tracker; TrackerError if it cannot."""
    if not isinstance(uid, str) or not UID.fullmatch(uid):
        raise TrackerError(f"run uid {shown(uid)}: use at most 64 letters, digits and ._-")
    return uid


def checked_experiment(experiment: str) -> str:
    """The name, which is also that of a folder; TrackerError if it cannot be."""
    if not isinstance(experiment, str) or not _EXPERIMENT.fullmatch(experiment):
        raise TrackerError(
            f"experiment {shown(experiment)}: use at most 100 letters, digits and ._-, a letter or digit first"
        )
    return experiment


def check_status(status: str) -> None:
    """TrackerError if no run can end so."""
    if not isinstance(status, str) or status not in get_args(Status):
        raise TrackerError(f"status {shown(status)}: a run ends as one of {', '.join(get_args(Status))}")


def checked_time(t_ms: Any) -> int:
    """Unix milliseconds as a whole number, without their fraction; TrackerError if they are no time of the years 1970
    to 9999."""
    try:
        if isinstance(t_ms, SupportsFloat) and 0 <= (whole := int(t_ms)) <= _LAST_MS:  # type: ignore[call-overload]
            return whole
    except Exception as error:
        raise TrackerError(f"t_ms: {called(t_ms)} is no time ({described(error)}); give Unix milliseconds") from error
    raise TrackerError(f"t_ms: {shown(t_ms)} is no time between 1970 and 9999; give Unix milliseconds")


def described(error: BaseException) -> str:
    """`ValueError: bad`; the type alone of one that has no text, or whose text cannot be had."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except ENDS_THE_PROGRAM:
        raise
    except BaseException:
        return type(error).__name__


def shown(value: object) -> str:
    """A value in one short line of a message, whatever it is."""
    try:
        text = repr(value)
    except ENDS_THE_PROGRAM:
        raise
    except BaseException:
        return called(value)
    return sendable(text if len(text) <= 200 else f"{text[:200]}…")


def called(value: object) -> str:
    """What a message calls a value of a wrong type."""
    return f"a value of type {type(value).__name__}"


def plain_backends(backends: Sequence[BackendConfig | Mapping[str, Any] | str]) -> list[BackendConfig]:
    """The trackers that a list names; TrackerError if it is no list, or one of them is none."""
    if isinstance(backends, str):
        raise TrackerError(f"backends={backends!r}: not a list; write backends=[{backends!r}]")
    if isinstance(backends, Mapping | BackendConfig) or not isinstance(backends, Iterable):
        raise TrackerError(f"backends: a {type(backends).__name__} is not a list; put it into brackets")
    for backend in backends:
        if not isinstance(backend, BackendConfig | Mapping | str):
            raise TrackerError(f"backends: {backend!r} is no tracker; write a name such as 'mlflow', or a mapping")
    return [backend_config(backend) for backend in backends]


def plain_params(params: Mapping[str, Any], what: str = "params") -> dict[str, Scalar]:
    """Text, numbers of Python, numpy or torch, and None stay; paths become text, and lists and mappings JSON.

    Raises TrackerError for anything else, naming the key; `what` is what the user called the mapping.
    """
    return {key: _plain(value, f"{what}[{key!r}]") for key, value in _items(params, what)}


def plain_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Text stays, numbers and paths become text; TrackerError for anything else, naming the key."""
    texts = {}
    for key, value in _items(tags, "tags"):
        if value is None or isinstance(value, list | tuple | Mapping):
            raise TrackerError(f"tags[{key!r}]: {called(value)} is no tag; give a text")
        texts[key] = scalar_text(_plain(value, f"tags[{key!r}]"))
    return texts


def checked_text(what: str, value: str | None) -> str | None:
    """The text; TrackerError if it is none."""
    if value is None or isinstance(value, str):
        return value
    raise TrackerError(f"{what}: {called(value)} is no text; write str(…)")


def plain_datasets(datasets: Iterable[DatasetInput]) -> list[dict[str, str]]:
    """Their fields, without secrets; TrackerError for one that is no text."""
    fields = [asdict(dataset) for dataset in datasets]
    for name, value in ((name, value) for dataset in fields for name, value in dataset.items()):
        if not isinstance(value, str):
            raise TrackerError(f"datasets: {name}: {called(value)} is no text; write str(…)")
    return [
        {**dataset, "name": redact(dataset["name"]), "source": redact_param("source", dataset["source"])}
        for dataset in fields
    ]


def _items(mapping: Mapping[str, Any], what: str) -> list[tuple[str, Any]]:
    if not isinstance(mapping, Mapping):
        raise TrackerError(f"{what}: {called(mapping)} is no mapping; write a dict")
    try:
        items = list(mapping.items())
    except Exception as error:
        raise TrackerError(
            f"{what}: {called(mapping)} that cannot be read ({described(error)}); write a dict"
        ) from error
    for key, _ in items:
        if not isinstance(key, str):
            raise TrackerError(f"{what}: the key {shown(key)} is no text; write '{shown(key)}'")
    return items


def _plain(value: Any, place: str) -> Scalar:
    try:
        match value:
            case None | bool() | str():
                return value
            case Path():
                return str(value)
            case numbers.Integral():
                whole = int(value)
                json.dumps(whole)  # which refuses one of thousands of digits
                return whole
            case list() | tuple() | Mapping():
                return json.dumps(value, ensure_ascii=False)
            case SupportsFloat():
                return float(value)
    except Exception as error:
        why = described(error)
        raise TrackerError(f"{place}: {called(value)} that cannot be kept ({why}); write str(…)") from error
    raise TrackerError(f"{place}: {called(value)} cannot be kept; write str(…)")

"""The data of a record as strict JSON, without anything that a tracker, its database or a terminal refuses."""

import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

_UNSENDABLE = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
"""Control characters other than tab and newline, and halves of surrogate pairs: the bytes of a name that is not UTF-8
become such halves, and UTF-8 cannot write them."""
_IN_TEXT = re.compile(_UNSENDABLE)
_IN_NAME = re.compile(rf"(?<!\\)(\\*+)({_UNSENDABLE}|(?<=\\)u[0-9a-f]{{4}})")
_encode_strictly = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(data: Mapping[str, Any]) -> str:
    """The mapping as one line of ASCII: NaN and infinities by their names, numbers of numpy and torch as Python's, and
    texts as `sendable` and `sendable_name` make them.

    Raises TypeError for a value that is neither text, number, None, list nor mapping.
    """
    try:
        body = _encode_strictly(data)
    except (ValueError, TypeError):
        return _encode_strictly(_plain(data))
    # What is to be escaped stands behind a backslash by now; most records have none.
    return _encode_strictly(_plain(data)) if "\\" in body else body


def sendable(text: str) -> str:
    """The text with what cannot be sent as it is written in Python and JSON: `\\u0000`, `\\udcff`."""
    return _IN_TEXT.sub(lambda found: _escaped(found[0]), text)


def sendable_name(name: str) -> str:
    """`sendable` for the names in a mapping, of which different ones stay different: where a name has such an escape
    already, its backslashes are doubled."""
    return _IN_NAME.sub(lambda found: 2 * found[1] + (found[2] if len(found[2]) > 1 else _escaped(found[2])), name)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {sendable_name(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return sendable(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{type(value).__name__} is not a value for the journal")
    number = float(value)
    return number if math.isfinite(number) else _non_finite_name(number)


def _non_finite_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

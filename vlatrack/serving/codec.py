"""The frames of both protocols: msgpack, in which an array is a map with a mark, its bytes, dtype and shape.

A frame comes from anybody. It can hold numbers, text and arrays of them, nothing that is executed, and its size bounds
the memory that it takes: what msgpack lets grow beyond that, many small values, is counted.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import ProtocolError
from vlatrack.serving.pictures import decode_picture

Content = TypeVar("Content")

MOST_VALUES = 100_000
"""Values in all maps and lists of a frame; the numbers of an array are none of them."""
_DEEPEST = 16
_LONGEST_LIST = 10_000  # room is made for all of a list as soon as its length is read
_LONGEST_TEXT = 1 << 16
_DTYPE = re.compile(r"[<>|=]?(?:[biuf][1248]|[US]\d{1,5})")
_SMALL = 1 << 20
_REFUSED = "expected a number type such as <f4 or |u1"


def binary(frame: str | bytes) -> bytes:
    """Raise ProtocolError for a frame of text."""
    if isinstance(frame, str):
        raise ProtocolError("frame: is text; send binary msgpack")
    return frame


async def beside(read: Callable[[bytes], Content], frame: bytes) -> Content:
    """What ``read`` makes of a frame; in another thread if that takes long, so that nobody else waits for it."""
    if len(frame) <= _SMALL and b"__image__" not in frame:
        return read(frame)
    return await asyncio.to_thread(read, frame)


def unpack(frame: bytes) -> Any:
    """The content of a frame, its arrays still as maps.

    Raises:
        ProtocolError: it is no msgpack, or holds too much.
    """
    values = 0

    def count(container: Any) -> Any:
        nonlocal values
        values += len(container)
        if values > MOST_VALUES:
            raise ProtocolError(f"frame: holds more than {MOST_VALUES:,} values; send numbers as arrays")
        return container

    try:
        return msgpack.unpackb(
            frame,
            object_hook=count,
            list_hook=count,
            max_array_len=_LONGEST_LIST,
            max_map_len=_LONGEST_LIST,
            max_str_len=_LONGEST_TEXT,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ProtocolError(f"frame: no msgpack that this server reads ({reason})") from error


def with_arrays(content: Any, depth: int = 0) -> Any:
    """The content of a frame with its arrays, read-only, and its pictures decoded, uint8 [height, width, channels].

    Raises:
        ProtocolError: an array has another number of bytes than its shape says, or is of Python objects; a picture is
            damaged or too large; maps are nested too deeply.
    """
    if depth > _DEEPEST:
        raise ProtocolError(f"frame: nested more than {_DEEPEST} deep")
    if isinstance(content, list):
        return [with_arrays(value, depth + 1) for value in content]
    if not isinstance(content, dict):
        return content
    named = {key.decode(errors="replace") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if "__ndarray__" in named or ("__image__" in named and named.get("format") == "raw"):
        return _array(named)
    if "__image__" in named:
        return decode_picture(named)
    if "__npgeneric__" in named:
        return _scalar(named)
    return {key: with_arrays(value, depth + 1) for key, value in content.items()}


def _array(entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype, data, shape = _dtype(entry), entry.get("data"), entry.get("shape")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > 8:
        raise ProtocolError("array: needs data as bytes and shape as a list of at most 8 numbers")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ProtocolError("array: the shape has sides that are no numbers of 0 or more")
    expected = dtype.itemsize
    for side in shape:
        expected *= side
    if expected != len(data):
        raise ProtocolError(f"array: {dtype} {shape} has {expected} bytes, but {len(data)} came"[:160])
    try:
        return np.ndarray(shape, dtype, data)
    except (ValueError, OverflowError) as error:  # a side of 0 beside one that no array can have
        raise ProtocolError(f"array: no array has the shape {shape}"[:160]) from error


def _scalar(entry: Mapping[str, Any]) -> Any:
    dtype, value = _dtype(entry), entry.get("data")
    if not isinstance(value, bool | int | float | str):
        raise ProtocolError("number: its data is none")
    try:
        return np.array(value, dtype)[()]
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"number: its data does not fit {dtype}") from error


def _dtype(entry: Mapping[str, Any]) -> np.dtype[Any]:
    name = entry.get("dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ProtocolError(f"array: of type {str(name)[:40]!r}; {_REFUSED}")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ProtocolError(f"array: of type {name!r}; {_REFUSED}") from error


def pack_openpi(content: Any) -> bytes:
    """A frame as openpi's clients and servers write it."""
    return _pack(content, _marked_in_bytes)


def pack_vla_eval(content: Any) -> bytes:
    """A frame as vla-eval's clients and servers write it."""
    return _pack(content, _marked_in_text)


def _pack(content: Any, arrays: Any) -> bytes:
    frame = msgpack.packb(content, default=arrays)
    assert isinstance(frame, bytes)
    return frame


def _marked_in_bytes(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no place in a frame")


def _marked_in_text(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a frame")

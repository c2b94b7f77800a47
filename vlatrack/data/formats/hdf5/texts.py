"""Texts that are stored beside groups, as attributes, in files that may be damaged.

A text of any length lies in a heap of the file. In a damaged one the HDF5 library may go round for ever, and it asks
for as much memory as the length says; neither can be ended from here, so both are looked at before.
"""

import struct
from pathlib import Path

import h5py

from vlatrack.data.formats.hdf5.reading import find, path_of, telling
from vlatrack.errors import DataError

_SEARCHED = 1 << 16
"""Bytes behind the beginning of a group in which its attributes are looked for."""
_BEHIND_NAME = 128
"""Bytes between the name of an attribute and its value: its type and shape."""
_LARGEST_HEAP = 64 << 20
_HEAP_HEADER, _OBJECT_HEADER = 16, 16


def attribute(file: h5py.File, group: str, name: str) -> str | None:
    """A text; None if there is none, or something else.

    Raises:
        DataError: it is damaged.
    """
    place = find(file, group)
    if not isinstance(place, h5py.Group):
        return None
    with telling(f"{path_of(file)}: {group}"):
        if name not in place.attrs:
            return None
        _check(Path(path_of(file)), h5py.h5o.get_info(place.id).addr, name)
        found = place.attrs[name]
    if isinstance(found, bytes):
        found = found.decode("utf-8", errors="replace")
    return found if isinstance(found, str) else None


def _check(path: Path, header: int, name: str) -> None:
    """Raise DataError if the text lies in a heap that is not one, or is longer than what is stored there."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(header)
        stored = stream.read(_SEARCHED)
        at = stored.find(name.encode() + b"\0")
        value = stored[at : at + len(name) + _BEHIND_NAME] if at >= 0 else b""
        for place in range(0, len(value) - 12, 4):  # length and address of the heap stand at a multiple of 4
            length, address = struct.unpack_from("<IQ", value, place)
            stream.seek(address if address < size else size)
            heap = stream.read(_HEAP_HEADER)
            if heap.startswith(b"GCOL"):
                rest = min(int.from_bytes(heap[8:], "little"), _LARGEST_HEAP) - _HEAP_HEADER
                _check_heap(heap + stream.read(max(0, rest)), length, f"{path}: {name}")
                return


def _check_heap(heap: bytes, length: int, place: str) -> None:
    at = _HEAP_HEADER
    while at + _OBJECT_HEADER <= len(heap):
        index, stored = struct.unpack_from("<H6xQ", heap, at)
        at += stored if index == 0 else _OBJECT_HEADER + (stored + 7) // 8 * 8
        if index == 0 and stored < _OBJECT_HEADER:
            raise DataError(f"{place}: damaged HDF5 file (no end of its texts); restore the file")
    if length > len(heap):
        raise DataError(f"{place}: damaged HDF5 file (a text of {length:,} bytes); restore the file")

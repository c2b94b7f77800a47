"""Reads HDF5 files that may come from anybody and may be damaged at any place.

Nothing is read before its size is checked against what the file holds, no link is followed, and whatever h5py raises
becomes one line with the place.
"""

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import PIECE_BYTES
from vlatrack.errors import DataError

MOST_COMPRESSION = 1100
"""How many times as large as its stored bytes content may be; deflate, which HDF5 has built in, reaches 1,032."""

_POINTER = b"version https://git-lfs"


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """The file, for reading; raises DataError if it cannot be opened."""
    with telling(str(path)):
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for somebody who writes into it
            raise DataError(f"{path}: is no file; remove it from the folder")
        with path.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise DataError(f"{path}: stands for a file that Git LFS has not fetched; run git lfs pull")
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        with telling(str(path)):
            file.close()


@contextmanager
def telling(place: str) -> Iterator[None]:
    """Turn whatever is raised meanwhile, by nothing but calls of h5py, into one line.

    Which byte of a file is damaged decides what that is: OSError, RuntimeError, KeyError, TypeError, MemoryError …
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{place}: damaged HDF5 file ({_reason(error)}); restore the file") from error


def _reason(error: Exception) -> str:
    """The first line of what h5py says, which may be nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def path_of(file: h5py.File) -> str:
    """The name of the file, for messages."""
    return str(file.filename)


def find(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset | None:
    """What is stored under a path of names; None if there is nothing.

    Raises:
        DataError: one of the names is a link, which may lead into any other file, or is damaged.
    """
    place = file
    with telling(f"{path_of(file)}: {name}"):
        for part in name.split("/"):
            link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise DataError(f"{path_of(file)}: {name} is a link; store the data itself in this file")
            place = place[part]
    return place


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose content is in this file, and can be as large as it says.

    Raises:
        DataError: it is missing, damaged, or stored elsewhere.
    """
    found = find(file, name)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{path_of(file)}: no {name} in it; restore the file, or leave this demonstration out")
    with telling(f"{path_of(file)}: {name}"):
        if found.is_virtual or found.external:
            raise DataError(f"{path_of(file)}: {name} is stored in another file; do not trust this file")
        _check_size(found, name)
    return found


def _check_size(dataset: h5py.Dataset, name: str) -> None:
    """Raise DataError if what is stored cannot be unpacked to the shape; a damaged one may ask for any memory."""
    place = f"{path_of(dataset.file)}: {name}"
    if dataset.shape is None:
        raise DataError(f"{place} is empty; restore the file")
    if math.prod(dataset.shape) == 0:
        return
    unpacked = max(math.prod(dataset.shape), math.prod(dataset.chunks or (1,))) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    fits = stored <= dataset.file.id.get_filesize()
    if not fits or unpacked > stored * (1 if dataset.chunks is None else MOST_COMPRESSION):
        raise DataError(
            f"{place} is {dataset.dtype} {list(dataset.shape)}, more than the {stored:,} bytes of it can hold; "
            "restore the file"
        )


def read_numbers(
    file: h5py.File, name: str, size: int | None = None, *, steps: int | None = None
) -> NDArray[np.float64]:
    """Numbers of each step, [T, size]; one number a step may also be stored as [T].

    Args:
        size: None: any.
        steps: only so many, the first ones; None: all.

    Raises:
        DataError: something else is there, or numbers that are not finite, also as float32.
    """
    dataset = find_dataset(file, name)
    place = f"{path_of(file)}: {name}"
    with telling(place):
        shape, kind = dataset.shape, dataset.dtype.kind
        found = f"{place} is {dataset.dtype} {list(shape)}, not {size or 'some'} numbers a step"
        columns = shape[1] if len(shape) == 2 else 1
        if len(shape) not in (1, 2) or kind not in "fiu" or columns == 0 or size not in (None, columns):
            raise DataError(f"{found}; restore the file, or leave this demonstration out")
        stored = dataset[:steps]
    values: NDArray[np.float64] = stored.astype(np.float64).reshape(len(stored), columns)
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise DataError(f"{place} has numbers that are not finite; remove the demonstration")
    return values


def find_images(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of images, uint8 [T, height, width, 3].

    Raises:
        DataError: something else is there.
    """
    dataset = find_dataset(file, name)
    with telling(f"{path_of(file)}: {name}"):
        is_images = len(dataset.shape) == 4 and dataset.shape[-1] == 3 and dataset.dtype == np.uint8
        if not is_images or 0 in dataset.shape[1:]:
            found = f"{path_of(file)}: {name} holds no images but {dataset.dtype} {list(dataset.shape)}"
            raise DataError(f"{found}; restore the file, or leave this demonstration out")
    return dataset


def image_pieces(images: h5py.Dataset, name: str, steps: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The images of rising steps, in pieces of at most about `PIECE_BYTES`; each stored chunk is unpacked once where
    chunks are smaller than that.

    Raises:
        DataError: they are damaged.
    """
    with telling(f"{path_of(images.file)}: {name}"):
        total, *shape = images.shape
        unit = images.chunks[0] if images.chunks else 1
    at_once = max(1, PIECE_BYTES // math.prod(shape))
    at_once -= at_once % unit if unit < at_once else 0
    for block in np.unique(steps // at_once):
        wanted = steps[steps // at_once == block]
        with telling(f"{path_of(images.file)}: {name}"):
            stored = images[wanted[0] : min(wanted[-1] + 1, total)]
        yield stored if len(stored) == len(wanted) else stored[wanted - wanted[0]]

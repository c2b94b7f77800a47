"""HDF5 files of demonstrations that are damaged at a place that a seed determines, and what comes of reading them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vlatrack.data.episodes import frame_pieces
from vlatrack.data.formats.hdf5.demonstrations import Hdf5Demonstrations
from vlatrack.errors import DataError


@dataclass
class Reading:
    """What could be read, and what was told of the rest."""

    episodes: int = 0
    told: list[str] = field(default_factory=list)


def damaged(content: bytes, seed: int) -> bytes:
    """The content with some flipped bits, a part that is zero or something else, or a missing end."""
    draws = random.Random(seed)
    changed = bytearray(content)
    # Nearly all bytes are pixels: half of the damage is to what stands at the beginning, or wherever names are.
    spots = [at for word in (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"GCOL") if (at := content.find(word)) >= 0]
    near = draws.choice([0, *spots])
    place = draws.choice([draws.randrange(len(content)), min(near + draws.randrange(2048), len(content) - 1)])
    match draws.choice(["bits", "bits", "zeros", "noise", "end"]):
        case "bits":
            for _ in range(draws.choice([1, 1, 8])):
                changed[place] ^= 1 << draws.randrange(8)
                place = min(place + draws.randrange(64), len(content) - 1)
        case "zeros":
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        case "noise":
            changed[place : place + 64] = draws.randbytes(len(changed[place : place + 64]))
        case "end":
            del changed[place:]
    return bytes(changed)


def read_all(open_source: Callable[[], Hdf5Demonstrations]) -> Reading:
    """Read everything that can be read; anything but a DataError goes on to the caller."""
    found = Reading()
    try:
        source = open_source()
        for episode in source.readable_episodes(lambda _, error: found.told.append(str(error))):
            found.episodes += 1
            for camera in source.cameras:
                try:
                    for _ in frame_pieces(source, episode, camera):
                        pass
                except DataError as error:
                    found.told.append(str(error))
    except DataError as error:
        found.told.append(str(error))
    for text in found.told:
        assert len(text.splitlines()) == 1, text
    return found


def try_seed(content: bytes, copy: Path, seed: int, open_source: Callable[[Path], Hdf5Demonstrations]) -> Reading:
    """Read a damaged copy of a file's content."""
    copy.write_bytes(damaged(content, seed))
    return read_all(lambda: open_source(copy))

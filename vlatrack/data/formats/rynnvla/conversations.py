"""Reads the conversations of RynnVLA-002 and WorldVLA: what its tokenisation starts from.

A JSON list holds one conversation for each sample. A question and an answer are texts with placeholders, which stand
for the files that the item lists under `image` (png), `action` and `state` (npy), each kind in its own order.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.formats.rynnvla.lists import DataRoot, read_entries
from vlatrack.errors import DataError

MediaKind = Literal["image", "action", "state"]

_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
_PLACEHOLDER = re.compile(r"<\|(image|action|state)\|>")
_NPY = re.compile(  # as numpy.save writes it: magic, version, size of the header, and the header
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>][fiu][248]|\|[iu]1)', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n",
    re.DOTALL,
)
_SPEAKERS = ("human", "gpt")
_LARGEST_NUMBERS = 1 << 20  # bytes of an npy file: an action has a few dozen
_LARGEST_IMAGE = 64 << 20  # bytes of a png file


@dataclass(frozen=True)
class Media:
    """A file that stands where a placeholder is."""

    kind: MediaKind
    folder: Path
    name: str

    @property
    def file(self) -> Path:
        return self.folder / self.name


Turn = tuple[str | Media, ...]  # pieces of text and files, in their order


@dataclass(frozen=True)
class Conversation:
    """One sample before its tokenisation."""

    place: str  # its list and number in it, for messages
    question: Turn
    answer: Turn

    @property
    def prompt(self) -> str:
        """The text of the question."""
        return "".join(part for part in self.question if isinstance(part, str))

    @property
    def media(self) -> tuple[Media, ...]:
        """All files, in their order."""
        return tuple(part for part in (*self.question, *self.answer) if isinstance(part, Media))

    @property
    def images(self) -> tuple[Path, ...]:
        """What the question shows, in its order."""
        return _files(self.question, "image")

    @property
    def next_images(self) -> tuple[Path, ...]:
        """What a world model answers."""
        return _files(self.answer, "image")

    @property
    def states(self) -> tuple[Path, ...]:
        return _files(self.question, "state")

    @property
    def actions(self) -> tuple[Path, ...]:
        """Those taken so far if a world model is asked, else the chunk that is answered."""
        return _files(self.question, "action") + _files(self.answer, "action")


def read_conversations(file: Path, root: Path | None = None) -> Iterator[Conversation]:
    """The conversations of a list, one after another.

    Args:
        root: the folder below which all their files lie; None: the one above the list's folder.

    Raises:
        DataError: the list cannot be read, or an item is no conversation of one question and one answer whose files are
            there.
    """
    where = DataRoot(file, root)
    for number, entry in read_entries(file):
        place = f"{file}: item {number}"
        if "conversations" not in entry and "file" in entry:
            raise DataError(f"{place} is a record of finished tokens, no conversation; use kind: rynnvla_records")
        question, answer = _texts(entry, place)
        files = {kind: iter(_listed(entry, kind, where, place)) for kind in _KINDS}
        conversation = Conversation(place, _turn(question, files, place), _turn(answer, files, place))
        if any(next(remaining, None) for remaining in files.values()):
            raise DataError(f"{place} lists more files than it has placeholders; restore the list")
        yield conversation


def read_image(file: Path) -> NDArray[np.uint8]:
    """A png, uint8 [height, width, 3], RGB; DataError if it is damaged."""
    content = _content(file, _LARGEST_IMAGE)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: damaged image ({_reason(error)}); restore the file") from None


def read_image_size(file: Path) -> tuple[int, int]:
    """Height and width of a png, from its beginning."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: damaged image ({_reason(error)}); restore the file") from None


def read_numbers(file: Path) -> NDArray[np.float64]:
    """The vector of an npy file, [N]; DataError if it is none of finite numbers, or damaged. Nothing is unpickled."""
    content = _content(file, _LARGEST_NUMBERS)
    header = _NPY.match(content)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        raise DataError(f"{file}: no npy file of a vector of numbers; restore the file")
    kind = np.dtype(header[2].decode())
    if not int(header[3]) or int(header[3]) * kind.itemsize != len(content) - header.end():
        raise DataError(f"{file}: not of the size that its header says; restore the file")
    numbers = np.frombuffer(content, kind, offset=header.end()).astype(np.float64)
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():  # which is false for NaN, too
        raise DataError(f"{file}: NaN, infinity or a number beyond 32 bits; leave its trajectory out")
    return numbers


def _texts(entry: dict[str, Any], place: str) -> tuple[str, str]:
    """The question and the answer of an item."""
    turns = entry.get("conversations")
    if isinstance(turns, list) and [turn.get("from") for turn in turns if isinstance(turn, dict)] == [*_SPEAKERS]:
        question, answer = (turn.get("value") for turn in turns)
        if isinstance(question, str) and isinstance(answer, str):
            return question, answer
    raise DataError(f"{place} is no conversation of one human and one gpt; restore the list")


def _listed(entry: dict[str, Any], kind: MediaKind, where: DataRoot, place: str) -> list[Media]:
    """The files of a kind; the reference writes a single one without a list, too."""
    found = entry.get(kind, [])
    return [Media(kind, *where.locate(file, place)) for file in (found if isinstance(found, list) else [found])]


def _turn(text: str, files: dict[MediaKind, Iterator[Media]], place: str) -> Turn:
    parts: list[str | Media] = []
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        if found.start() > end:
            parts.append(text[end : found.start()])
        media = next(files[cast(MediaKind, found[1])], None)
        if media is None:
            raise DataError(f"{place} has more placeholders {found[0]} than files; restore the list")
        parts.append(media)
        end = found.end()
    return (*parts, text[end:]) if end < len(text) else tuple(parts)


def _files(turn: Turn, kind: MediaKind) -> tuple[Path, ...]:
    return tuple(part.file for part in turn if isinstance(part, Media) and part.kind == kind)


def _content(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore the file") from None
    if len(content) > most:
        raise DataError(f"{file}: more than {most:,} bytes, too many for what it should hold; restore the file")
    return content


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]

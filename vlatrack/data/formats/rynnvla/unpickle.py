"""Reads pickles of which a stranger may be the author: plain lists, dicts, tuples, numbers and strings, nothing else.

A pickle is a program. Most of what makes one dangerous is its right to import things, but the machine that runs it can
also be made to take all memory (an entry of its memo with a huge number) or to crash the process (a dict's key that is
nested deeply enough to overflow the C stack when it is hashed). So the program is read before it is run: every
instruction must be one that builds plain values, in a number that plain values need. Regular expressions do it at about
the speed at which the pickle is then read.
"""

import io
import pickle  # what is read with it has been searched for everything but plain values
import re
from typing import Any, NoReturn

from vlatrack.errors import DataError

LARGEST = 4 << 20
"""Bytes of a pickle: a row of 4,096 tokens has about 30,000."""

_MOST_CONTAINERS = 1000
"""Lists, tuples and dicts of a pickle: a record has three. Deep nesting takes many."""

_BEGINNING = re.compile(rb"\x80[\x02-\x05]")
_NUMBERS = re.compile(
    rb"(?: M.. | K. | J.{4} | G.{8}"  # an integer of 2, 1 or 4 bytes, a float
    rb"| \x94 | q. | r..\x00\x00 | h. | j..\x00\x00"  # remember a value, recall it; the memo grows to 65,536 at most
    rb"| \x95.{8} | [(aesuN0] )*+",  # the size of a frame; a mark, append, set items, None, drop a value
    re.DOTALL | re.VERBOSE,
)
_CONTAINER = frozenset(b"])}lt\x85\x86\x87")  # every instruction that makes a list, a tuple or a dict
_STRING_SIZE = {ord("\x8c"): 1, ord("X"): 4}  # the bytes that hold the length of a string
_STOP = ord(".")
_HAVE_ARGUMENTS = frozenset(b"MKJGqrhj\x95")
_LONGEST_ARGUMENT = 8


def load_plain(content: bytes, place: str) -> Any:
    """The value of a pickle of protocol 2 to 5.

    Args:
        place: names the pickle in messages.

    Raises:
        DataError: it holds anything but plain lists, dicts, tuples, numbers and strings, is damaged or too large.
    """
    _check(content, place)
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # of a damaged pickle nearly any exception may come, as its documentation says
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place}: damaged pickle ({reason[:100]}); restore the file") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise AssertionError(f"{module}.{name}: the instructions that ask for it have been refused")


def _check(content: bytes, place: str) -> None:
    """Raise DataError unless every instruction builds plain values."""
    if len(content) > LARGEST:
        raise DataError(f"{place}: {len(content):,} bytes are no record of one row; records have at most {LARGEST:,}")
    if not (found := _BEGINNING.match(content)):
        raise DataError(f"{place}: not a pickle of protocol 2 to 5; restore the file")
    position, containers, strings = found.end(), 0, list[bytes]()
    while True:
        matched = _NUMBERS.match(content, position)
        assert matched is not None, "no number at all is a match, too"
        position = matched.end()
        if position >= len(content):
            raise DataError(f"{place}: the pickle is cut off; restore the file")
        instruction = content[position]
        if instruction == _STOP:
            return
        if instruction in _CONTAINER:
            containers, position = containers + 1, position + 1
        elif size := _STRING_SIZE.get(instruction):
            start = position + 1 + size
            position = start + int.from_bytes(content[position + 1 : start], "little")
            strings.append(content[start : min(position, start + 100)])
        elif instruction in _HAVE_ARGUMENTS and len(content) - position <= _LONGEST_ARGUMENT:
            raise DataError(f"{place}: the pickle is cut off; restore the file")
        else:
            raise DataError(_refusal(content, position, strings, place))
        if containers > _MOST_CONTAINERS:
            raise DataError(f"{place}: more than {_MOST_CONTAINERS:,} lists in a pickle of one row; do not trust it")


def _refusal(content: bytes, position: int, strings: list[bytes], place: str) -> str:
    """Why an instruction is not run, with the name of what it asks for where it has one."""
    instruction = content[position : position + 1]
    if instruction == b"c":
        words = content[position + 1 : position + 200].split(b"\n")[:2]
    elif instruction == b"\x93":
        words = strings[-2:]
    else:
        return (
            f"{place}: refused, its instruction {instruction!r} at byte {position} builds something else than plain "
            "lists, numbers and strings; do not trust it"
        )
    name = b".".join(words).decode("ascii", "replace")
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)[:100]
    return (
        f"{place}: refused, it asks for the Python object {shown}, which could run anything; a record holds plain "
        "lists of ids (of an array or a tensor store what its tolist() gives)"
    )

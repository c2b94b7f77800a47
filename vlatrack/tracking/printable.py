"""Text of others made fit for a terminal: names, reasons and addresses from run folders and servers."""

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, ESC above all: a terminal obeys what follows it
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of the writing direction
    "\u2028\u2029\ufeff\ud800-\udfff]"  # more line ends, a byte order mark, halves of characters
)


def printable(text: str) -> str:
    """The text in one line, with control characters and marks of direction written as `\\x1b` or `\\u202e`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)

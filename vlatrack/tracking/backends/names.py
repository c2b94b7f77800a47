"""Names that a tracker cannot have, made to fit and back: `:x5c:` stands for a letter with that code."""

import re

_ESCAPE = re.compile(r":x([0-9a-f]+):")


def escaped(name: str, forbidden: re.Pattern[str]) -> str:
    """The name without forbidden letters; `forbidden` also matches a colon before an x, so that names stay distinct."""
    return forbidden.sub(lambda match: f":x{ord(match[0]):x}:", name)


def unescaped(name: str) -> str:
    """The inverse of `escaped`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)

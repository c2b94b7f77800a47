"""Metric and parameter names as MLflow keys, reversibly: what MLflow forbids is written `:x<code point>:`."""

import posixpath
import re

LONGEST_KEY = 250

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_/.\- :]|:(?=x)")
_FORBIDDEN_IN_PATHS = re.compile(r"[^A-Za-z0-9_\- :]|:(?=x)")
_ESCAPE = re.compile(r":x([0-9a-f]+):")


def mlflow_key(name: str) -> str:
    """The key of a name; distinct names have distinct keys."""
    # MLflow refuses what is no normal relative path ("a//b", "../a", "."): there, dots and slashes are escaped too.
    normal = bool(name) and posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    forbidden = _FORBIDDEN if normal and name != "." else _FORBIDDEN_IN_PATHS
    return forbidden.sub(lambda match: f":x{ord(match[0]):x}:", name)


def name_of_mlflow_key(key: str) -> str:
    """The inverse of `mlflow_key`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), key)

"""Loads third-party classes: `package.module:Class`, or the name of an entry point of an installed package."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import entry_points

from vlatrack.errors import SpecError


def make_plugin(target: str, *, group: str, options: Mapping[str, object]) -> object:
    """Call the class, or function, that `target` names.

    Args:
        target: `package.module:Class`, or the name of an entry point of `group`.
        group: entry point group, such as `vlatrack.environments`.
        options: keyword arguments.

    Raises:
        SpecError: there is no such class, or it does not accept the options. Its own exceptions propagate.
    """
    found = load_plugin(target, group)
    with suppress(ValueError):  # of compiled code that does not say what its arguments are
        signature = inspect.signature(found)
        try:
            signature.bind(**options)
        except TypeError as error:
            raise SpecError(f"{target}: options: {error}; correct the options") from error
    return found(**options)


def load_plugin(target: str, group: str) -> Callable[..., object]:
    """The class, or function, that `target` names; see `make_plugin`, which also calls it.

    Raises:
        SpecError: there is no such class.
    """
    try:
        found = _find(target, group)
    except SpecError:
        raise
    except Exception as error:  # importing runs third-party code, which may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError(
            f"{target}: cannot be loaded ({reason}); is its package installed, or its folder on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise SpecError(f"{target}: is not a class; name one as package.module:Class")
    return found


def _find(target: str, group: str) -> object:
    module, colon, name = target.partition(":")
    if colon:
        return getattr(importlib.import_module(module), name)
    named = entry_points(group=group)
    if target not in named.names:
        there = ", ".join(sorted(named.names)) or "none"
        raise SpecError(
            f"{target}: no installed package offers it (entry points of {group}: {there}); "
            "install it, or name a class as package.module:Class"
        )
    return named[target].load()

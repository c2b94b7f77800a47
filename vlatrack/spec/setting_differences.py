"""In which settings several experiments differ, by what the settings mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlatrack.spec.identity import ADDED_LATER, NOT_DECIDING, Scalar, matches

_PATHS = ("name", "data.*.path", "backbone.checkpoint", "tokenizer.checkpoint", "init_from", "tracking.*")
"""Settings of which only the content counts, which fingerprints compare, and those of trackers."""


@dataclass(frozen=True)
class SettingDifference:
    """A setting in which experiments differ; None also stands for one that an experiment does not have."""

    path: str
    values: tuple[Scalar, ...]
    decides: bool  # the result; else speed, or what is measured beside it


def decides(path: str) -> bool:
    """Whether a setting decides the result."""
    return not matches(path, NOT_DECIDING)


def with_defaults(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Recorded settings, with the defaults of those that later releases added; settings of others stay as they are."""
    return {**(ADDED_LATER if "backbone.kind" in settings else {}), **settings}


def setting_differences(experiments: Sequence[Mapping[str, Scalar]]) -> list[SettingDifference]:
    """Those that decide the result first. Numbers are compared as numbers, paths do not count.

    A setting that an experiment of an earlier release does not have, and that does not decide, is no difference.
    """
    found = []
    for path in dict.fromkeys(path for settings in experiments for path in settings):
        if matches(path, _PATHS):
            continue
        values = tuple(settings.get(path) for settings in experiments)
        compared = [settings[path] for settings in experiments if path in settings] if not decides(path) else values
        if any(not _same(compared[0], value) for value in compared):
            found.append(SettingDifference(path, values, decides(path)))
    return sorted(found, key=lambda difference: not difference.decides)


def _same(a: Scalar, b: Scalar) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)

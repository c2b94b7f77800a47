"""The statistics that a LeRobot dataset tells of itself: meta/stats.json, or those of its episodes added up."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.told_statistics import TOLD, ToldStatistics
from vlatrack.data.formats.lerobot.layout import STATS
from vlatrack.errors import DataError

_OF_EPISODES = "meta/episodes_stats.jsonl"  # of v2.1

Numbers = NDArray[np.float64]


def own_statistics(root: Path, features: Sequence[str]) -> dict[str, ToldStatistics]:
    """Those of some features; of a feature that has none, nothing.

    Raises:
        DataError: the file is damaged.
    """
    for name in (STATS, _OF_EPISODES):
        file = root / name
        if not file.is_file():
            continue
        try:
            of_episodes = list(_contents(file))
            found = {feature: _total([_numbers(one[feature]) for one in of_episodes]) for feature in features}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{file}: damaged ({type(error).__name__}); restore the file") from None
        return {feature: ToldStatistics(name, values) for feature, values in found.items()}
    return {}


def _contents(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".json":
        yield json.loads(file.read_text(encoding="utf-8"))
        return
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["stats"] for line in lines if line.strip())


def _numbers(told: Mapping[str, Any]) -> dict[str, Numbers]:
    """Each of them [D], and how many steps they are of, [1]."""
    return {name: np.asarray(told[name], np.float64).reshape(-1) for name in (*TOLD, "count")}


def _total(parts: Sequence[dict[str, Numbers]]) -> dict[str, Numbers]:
    """Of all episodes, from those of each."""
    low, high, mean, std, count = (np.stack([part[name] for part in parts]) for name in (*TOLD, "count"))
    share = count / count.sum()
    whole = (share * mean).sum(axis=0)
    spread = np.sqrt((share * (std**2 + (mean - whole) ** 2)).sum(axis=0))
    return dict(zip(TOLD, (low.min(axis=0), high.max(axis=0), whole, spread), strict=True))

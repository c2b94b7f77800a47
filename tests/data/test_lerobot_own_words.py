"""What a LeRobot dataset says of itself: its tasks by their numbers, and the statistics of its values."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_v21 import as_v21, write_lines

from vlatrack.data.checks.finding import Finding
from vlatrack.data.checks.scan import scan_dataset
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.errors import DataError

WRITTEN_BY_LEROBOT = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
STATS = "meta/stats.json"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN_BY_LEROBOT, tmp_path / "demos"))


def of_statistics(root: Path) -> list[Finding]:
    scan = scan_dataset(LeRobotDataset(root), skip_bad=False)
    return [finding for finding in scan.findings() if finding.check == "statistics"]


@pytest.mark.parametrize("layout", ["v3.0", "v2.1"])
def test_a_task_index_without_a_task_is_an_error_with_its_episode(copy: Path, tmp_path: Path, layout: str) -> None:
    root = copy if layout == "v3.0" else as_v21(copy, tmp_path / "old")
    for file in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(file)
        numbers = np.where(table["episode_index"].to_numpy() == 1, 7, table["task_index"].to_numpy())
        place = table.schema.get_field_index("task_index")
        pq.write_table(table.set_column(place, "task_index", pa.array(numbers)), file)
    bad: list[str] = []
    good = LeRobotDataset(root).readable_episodes(lambda index, error: bad.append(str(error)))
    assert [episode.index for episode in good] == [0, 2]
    assert bad == [f"{root}: episode 1 has task_index 7, which is no task of the dataset; restore its tasks"]
    with pytest.raises(DataError, match="episode 1 has task_index 7"):
        LeRobotDataset(root).episodes()


def test_statistics_that_are_those_of_the_values_are_no_finding(copy: Path) -> None:
    assert of_statistics(copy) == []


def test_statistics_of_other_values_are_a_warning_with_how_many_and_where(copy: Path) -> None:
    told = json.loads((copy / STATS).read_text())
    told["action"]["mean"][1] += 0.01
    told["action"]["max"][0] = None
    (copy / STATS).write_text(json.dumps(told))
    (found,) = of_statistics(copy)
    assert (found.severity, found.count, found.where) == ("warning", 2, str(copy))
    assert found.message == (
        "2 values of meta/stats.json not as in the data: max of action 0 is 0.340086, not nan, "
        "mean of action 1 is -0.145872, not -0.135872"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"action": {"min": "low"}}', '{"action": {"min": [0]}}'])
def test_statistics_that_cannot_be_read_are_a_warning(copy: Path, content: str) -> None:
    (copy / STATS).write_text(content)
    (found,) = of_statistics(copy)
    assert found.severity == "warning"
    assert found.message.startswith(f"{copy / STATS}: damaged (")


def test_the_statistics_of_episodes_are_added_up(copy: Path, tmp_path: Path) -> None:
    root = as_v21(copy, tmp_path / "old")
    (root / STATS).unlink(missing_ok=True)
    lines = [
        {"episode_index": episode.index, "stats": {name: described(values) for name, values in features.items()}}
        for episode in LeRobotDataset(root).episodes()
        for features in ({"action": episode.actions, "observation.state": episode.states},)
    ]
    write_lines(root / "meta/episodes_stats.jsonl", lines)
    assert of_statistics(root) == []
    lines[2]["stats"]["action"]["std"][2] *= 2
    write_lines(root / "meta/episodes_stats.jsonl", lines)
    (found,) = of_statistics(root)
    assert "1 value of meta/episodes_stats.jsonl not as in the data: std of action 2 is 0.525201" in found.message


def described(values: np.ndarray) -> dict[str, list[float]]:
    wide = values.astype(np.float64)
    statistics = {name: getattr(np, name)(wide, axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return {**statistics, "count": [len(values)]}

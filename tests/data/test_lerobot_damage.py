"""What happens to LeRobot datasets in practice: bits that flip, files that end early, tables that make no sense."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from lerobot_damage import Victim, small_dataset, small_victims
from lerobot_v21 import as_v21

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.errors import DataError

TRIALS = 30
KINDS = 6
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Victim]:
    return small_victims(tmp_path_factory.mktemp("victims"))


@pytest.mark.parametrize("kind", range(KINDS))
def test_damage_anywhere_in_a_file_is_one_line_or_does_no_harm(kinds: list[Victim], kind: int) -> None:
    assert len(kinds) == KINDS
    victim = kinds[kind]
    outcomes = [victim.damage(seed) for seed in range(TRIALS)]
    assert "told" in outcomes, victim.name
    assert not victim.has_checksums or "unseen" not in outcomes, victim.name


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Three episodes of a square, in one table."""
    return small_dataset(tmp_path / "demos")


def change(demos: Path, column: str, change_to: object) -> None:
    """Give a column of the frame table other content: the same for all rows, or a column."""
    table = pq.read_table(demos / DATA)
    rows = change_to if isinstance(change_to, pa.Array) else pa.array([change_to] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index(column), column, rows), demos / DATA)


def told(demos: Path) -> str:
    """What reading says, in one line, of the first episode that is bad."""
    with pytest.raises(DataError) as caught:
        LeRobotDataset(demos).episodes()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frame_table(demos: Path) -> pa.Table:
    return pq.read_table(demos / DATA)


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("action", "text", "episode 0: action: holds string, not numbers"),
        ("action", ["a", "b"], "episode 0: action: holds string, not numbers"),
        ("action", [[1.0], [2.0]], "episode 0: action: holds list<.*>, not numbers"),
        ("action", None, "episode 0: action: holds null, not numbers"),
        ("action", [1.0, 2.0, 3.0], "episode 0: action: not 2 numbers in step 0"),
        ("action", [1e300, 0.0], "episode 0: action: numbers that are not finite"),
        ("action", 1.0, r"episode 0: action: \d+ numbers in \d+ steps, not 2 each"),
        ("frame_index", 0, "episode 0: frame_index goes from 0 to 0 at step 1"),
        ("frame_index", "zero", "episode 0: frame_index holds string, not whole numbers"),
        ("episode_index", 0, r"episode 0 has \d+ rows in .*file-000.parquet, not"),
        ("episode_index", 0.5, "episode_index holds numbers that are not whole"),
        ("episode_index", None, "episode_index holds nulls, not whole numbers"),
        ("timestamp", 1.0, "episode 0: the timestamp of step 1 is not after the one before"),
        ("timestamp", float("nan"), "episode 0: timestamp has values that are not finite"),
        ("timestamp", "now", "episode 0: timestamp holds string, not numbers"),
    ],
)
def test_tables_that_make_no_sense_are_told(demos: Path, column: str, content: object, message: str) -> None:
    change(demos, column, content)
    with pytest.raises(DataError, match=message) as caught:
        LeRobotDataset(demos).episodes()
    assert "\n" not in str(caught.value)


def test_whole_numbers_stored_with_a_point_are_whole_numbers(demos: Path) -> None:
    before = LeRobotDataset(demos).episodes()
    table = frame_table(demos)
    for name in ("episode_index", "frame_index"):
        change(demos, name, table[name].cast(pa.float64()).combine_chunks())
    assert [e.length for e in LeRobotDataset(demos).episodes()] == [e.length for e in before]


def test_ragged_rows_are_told_though_their_numbers_are_right_in_all(demos: Path) -> None:
    rows = [[0.5, 0.5]] * (frame_table(demos).num_rows - 2)
    change(demos, "action", pa.array([[0.5], [0.5, 0.5, 0.5], *rows]))
    assert "episode 0: action: not 2 numbers in step 0" in told(demos)


def test_shuffled_rows_are_told(demos: Path) -> None:
    table = frame_table(demos)
    order = np.arange(table.num_rows)
    order[[2, 3]] = [3, 2]
    pq.write_table(table.take(order), demos / DATA)
    assert "episode 0: frame_index goes from 1 to 3 at step 2, so steps are missing or out of order" in told(demos)


def test_episodes_in_another_order_than_in_the_table_are_read(demos: Path) -> None:
    before, table = LeRobotDataset(demos).episodes(), frame_table(demos)
    parts = [table.filter(pc.field("episode_index") == index) for index in (2, 0, 1)]
    pq.write_table(pa.concat_tables(parts), demos / DATA)
    after = LeRobotDataset(demos).episodes()
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(before, after, strict=True))


def test_an_episode_that_is_scattered_over_its_table_is_told(demos: Path) -> None:
    table = frame_table(demos)
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), demos / DATA)
    assert "episode 0 is scattered over" in told(demos)


def test_a_dataset_without_rows_is_told(demos: Path) -> None:
    pq.write_table(frame_table(demos).slice(0, 0), demos / DATA)
    assert "episode 0 has 0 rows in" in told(demos)


def test_damage_to_one_episode_leaves_the_others_readable(demos: Path) -> None:
    rows = pq.ParquetFile(demos / DATA).metadata.row_group(1)
    names = [rows.column(number).path_in_schema for number in range(rows.num_columns)]
    place = rows.column(names.index("action.list.element"))
    content = bytearray((demos / DATA).read_bytes())
    content[(place.dictionary_page_offset or place.data_page_offset) + place.total_compressed_size - 3] ^= 1
    (demos / DATA).write_bytes(content)
    bad: list[int] = []
    read = list(LeRobotDataset(demos).readable_episodes(lambda index, _: bad.append(index)))
    assert bad == [1]
    assert [episode.index for episode in read] == [0, 2]


def test_a_wrong_number_of_frames_a_second_is_told_with_the_right_one(demos: Path) -> None:
    info = demos / "meta/info.json"
    info.write_text(info.read_text().replace('"fps": 10', '"fps": 30'))
    assert "steps are 0.1 s apart by their timestamps, but fps is 30; correct fps in meta/info.json to 10" in told(
        demos
    )


@pytest.mark.parametrize("fps", ["NaN", "Infinity", "0", '"ten"', "1e400"])
def test_frames_a_second_that_are_no_number_are_told(demos: Path, fps: str) -> None:
    info = demos / "meta/info.json"
    info.write_text(info.read_text().replace('"fps": 10', f'"fps": {fps}'))
    with pytest.raises(DataError, match=r"info\.json: fps: Input should be"):
        LeRobotDataset(demos)


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("tasks", [None] * 3, "episode 0 has 0 instructions"),
        ("tasks", [[None]] * 3, "episode 0 has 0 instructions"),
        ("tasks", [[" "]] * 3, "episode 0 has 0 instructions"),
        ("length", ["three"] * 3, "length holds string, not whole numbers"),
        ("length", [None, 1, 2], "an episode lacks its length"),
        ("episode_index", [0, 0, 1], "episode 0 is in the tables twice"),
        ("data/file_index", [-1, 0, 0], "an episode has a negative index, length or place"),
        ("data/file_index", [7, 7, 7], r"file-007\.parquet: no such file"),
    ],
)
def test_a_table_of_episodes_that_makes_no_sense_is_told(
    demos: Path, column: str, content: list[object], message: str
) -> None:
    path = demos / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(content)), path)
    with pytest.raises(DataError, match=message) as caught:
        LeRobotDataset(demos).episodes()
    assert "\n" not in str(caught.value)


def test_a_column_that_is_gone_is_told(tmp_path: Path, demos: Path) -> None:
    old = as_v21(demos, tmp_path / "old")
    path = old / "data/chunk-000/episode_000002.parquet"
    pq.write_table(pq.read_table(path).drop(["action"]), path)
    bad: dict[int, str] = {}
    list(LeRobotDataset(old).readable_episodes(lambda index, problem: bad.update({index: str(problem)})))
    assert list(bad) == [2]
    assert "episode_000002.parquet: no column action" in bad[2]

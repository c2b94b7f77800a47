"""Damage at any place of the reference's files is one line, or another value; never anything else.

A thousand trials of each kind have been run; these are the first thirty.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rynnvla_data import STATE_FOLDER, vla_conversations, write_records, write_trajectories
from toy_source import ToySource

from vlatrack.data.episodes import checked_frames
from vlatrack.data.formats.rynnvla.records import Records
from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories
from vlatrack.data.rows import TokenRows
from vlatrack.errors import DataError

TRIALS = 30
TRAJECTORY = Path("processed_data/toy/push_the_square/trj_0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations with their files, records, and the rows that they have become."""
    folder = tmp_path_factory.mktemp("damage")
    trajectories = folder / "processed_data/toy"
    write_trajectories(trajectories, ToySource(episodes=1), {"front": "imgs"})
    (folder / "processed_data/convs").mkdir()
    conversations = vla_conversations(trajectories, history=1, horizon=5, cameras=["imgs"])["all"]
    (folder / "processed_data/convs/all.json").write_text(json.dumps(conversations))
    generator = random.Random(0)
    rows = [[generator.randrange(60_000) for _ in range(50)] for _ in range(20)]
    config = write_records(folder, [(ids, [-100] * 20 + ids[20:]) for ids in rows])
    Records(config).rows(folder / "rows").file.rename(folder / "rows.arrow")
    return folder


def _read_conversations(folder: Path) -> None:
    source = RynnVlaTrajectories(folder / "processed_data/convs/all.json")
    checked_frames(source, source.episodes()[0], "imgs")


def _read_records(folder: Path) -> None:
    rows = Records(folder / "configs/libero_goal/rows.yaml").rows(folder / "rows")
    rows.batch(range(len(rows)))


def _read_rows(folder: Path) -> None:
    rows = TokenRows(folder / "rows.arrow")
    rows.batch(range(len(rows)))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (Path("processed_data/convs/all.json"), _read_conversations),
        (TRAJECTORY / "action/action_3.npy", _read_conversations),
        (TRAJECTORY / f"{STATE_FOLDER}/{STATE_FOLDER}_2.npy", _read_conversations),
        (TRAJECTORY / "imgs/image_4.png", _read_conversations),
        (Path("configs/libero_goal/rows.yaml"), _read_records),
        (Path("processed_data/concate_tokens/rows.json"), _read_records),
        (Path("processed_data/tokens/rows/files/3.pkl"), _read_records),
        (Path("rows.arrow"), _read_rows),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_damage_is_one_line_or_another_value(name: Path, read: Callable[[Path], None], data: Path) -> None:
    file, generator = data / name, random.Random(5)
    whole, reasons = file.read_bytes(), []
    try:
        for trial in range(TRIALS):
            file.write_bytes(_damaged(whole, trial, generator))
            shutil.rmtree(data / "rows", ignore_errors=True)
            try:
                read(data)
            except DataError as error:
                reasons.append(str(error))
    finally:
        file.write_bytes(whole)
    assert len(reasons) > TRIALS / 3
    assert not any("\n" in reason for reason in reasons)


def _damaged(whole: bytes, trial: int, generator: random.Random) -> bytes:
    """Cut off, or with zeros, or with a bit or three turned."""
    damaged = bytearray(whole)
    if trial % 3 == 0:
        return bytes(damaged[: generator.randrange(len(whole))])
    if trial % 7 == 0:
        start = generator.randrange(len(whole))
        damaged[start : start + 10] = bytes(10)
    for _ in range(generator.choice([1, 1, 3])):
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
    return bytes(damaged)

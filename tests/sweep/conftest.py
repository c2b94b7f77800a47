"""Sweeps of the toy experiment."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from program import TOY

from vlatrack.spec.sweep_file import load_sweep
from vlatrack.sweep.storage import SweepFolder
from vlatrack.sweep.study import SweepStudy

QUICK = {"train.max_steps": 4, "train.batch_size": 32, "evaluate.open_loop.max_samples": 16, "data.samples": ["vla"]}


@pytest.fixture(autouse=True)
def _fast_sqlite() -> Iterator[None]:
    """No test cuts the power, so nothing has to be on the disk after each of the many transactions."""

    def relax(connection, _) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("pragma synchronous=off")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a sweep of the toy experiment; keyword arguments are its keys."""

    def write(**keys: object) -> Path:
        content = {
            "name": "toys",
            "experiment": "toy.yaml",
            "overrides": QUICK,
            "space": {"optim.lr": {"log": [1e-5, 1e-2]}},
            "objectives": [{"metric": "val_ind_loss_ct"}],
            "trials": 3,
        }
        (tmp_path / "toy.yaml").write_text(TOY.read_text())
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in (content | keys).items() if value is not None}))
        return file

    return write


@pytest.fixture
def opened(sweep_file, tmp_path: Path) -> Callable[..., SweepStudy]:
    """Open the study of a sweep as one more worker does."""

    def open_(**keys: object) -> SweepStudy:
        folder = SweepFolder(tmp_path / "runs", "toys")
        folder.create()
        return SweepStudy(load_sweep(sweep_file(**keys)), folder)

    return open_

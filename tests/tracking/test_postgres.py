"""A run on an MLflow server whose database is PostgreSQL: what stands in its tables is what the journal holds."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from postgres_server import PostgresServer, find_programs

from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.mlflow.runs import name_of_mlflow_key
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.run import TrackedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Point = tuple[str, int, int, float | str]
LARGEST_DOUBLE = 1.7976931348623157e308
STORED = "select key, timestamp, step, case when is_nan then 'NaN'::float8 else value end from metrics"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg2", reason="psycopg2, the driver of PostgreSQL, is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with PostgresServer(programs) as server:
        yield server


@pytest.fixture
def server(database: PostgresServer, tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, database.uri)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def comparable(value: float) -> float | str:
    """NaN is not equal to itself, and MLflow stores an infinity as the largest number."""
    return "NaN" if math.isnan(value) else max(-LARGEST_DOUBLE, min(LARGEST_DOUBLE, value))


def in_journal(run_dir: Path) -> Counter[Point]:
    metrics = [record for record in read_records(run_dir / "journal.jsonl") if record.kind == Kind.METRICS]
    return Counter((name, r.t_ms, r.step or 0, comparable(v)) for r in metrics for name, v in r.data.items())


def check(run_dir: Path, database: PostgresServer) -> None:
    stored = [(name_of_mlflow_key(key), t, step, comparable(v)) for key, t, step, v in database.rows(STORED)]
    assert Counter(stored) == in_journal(run_dir)
    assert len(stored) == 4505
    params = {name_of_mlflow_key(key): text for key, text in database.rows("select key, value from params")}
    assert params == {"lr": "0.0001", "long": "p" * 6000, "ünï=": "ö"}
    assert database.rows("select value from tags where key = 'vlatrack.truncated_params'") == [
        ("whole in the spec artifact: long",)
    ]
    assert sorted(database.rows("select name, status from runs")) == [("n", "FINISHED"), ("sweep", "FINISHED")]
    assert database.rows("select count(*) from logged_models") == [(1,)]


def test_postgresql_holds_the_journal_without_gaps_or_duplicates_also_after_a_replay(
    run_dir: Path, server: MlflowServer, database: PostgresServer
) -> None:
    mlflow = BackendConfig("mlflow", options={"tracking_uri": server.url})
    params = {"lr": 1e-4, "long": "p" * 20_000, "ünï=": "ö"}
    run = TrackedRun.start(
        run_dir, uid="u1", name="n", experiment="exp", backends=[mlflow], params=params, tags={}, group="sweep"
    )
    for step in range(1500):
        run.log({"train_closs": step / 3, "val ünï/字": -step / 7, "a-b:c=d, e%": 1e-300 * step}, step=step)
    for step, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 5e-324)):
        run.log({"train_z_loss": value}, step=step)
    run.event("checkpoint", {"step": 1499, "epoch": 1, "name": "step-1499"})
    assert run.finish("FINISHED").complete
    check(run_dir, database)
    (run_dir / "delivery" / "mlflow-0.json").unlink()
    assert sync_run(run_dir).complete
    check(run_dir, database)

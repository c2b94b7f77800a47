"""Scripts and notebooks that use TrackedRun and end without `finish`: no run stays RUNNING or looks finished."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlatrack.tracking.journal.history import RunStatus, run_status

BEGIN = """
import sys
from pathlib import Path
from vlatrack.tracking.run import BackendConfig, TrackedRun
backend = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")
"""
START = 'TrackedRun.start(Path(sys.argv[1]), uid="u", name="n", experiment="e", backends=[backend], params={}, tags={})'
PLAIN = f"{BEGIN}run = {START}\nrun.log({{'train_closs': 0.5}}, step=1)\n"
BLOCK = f"{BEGIN}with {START} as run:\n    run.log({{'train_closs': 0.5}}, step=1)\n    "
UNTOLD = "the training process ended without saying why"


@pytest.mark.parametrize(
    ("script", "code", "status", "reason"),
    [
        pytest.param(PLAIN, 0, "KILLED", UNTOLD, id="ends", marks=pytest.mark.slow),
        pytest.param(f"{PLAIN}sys.exit(3)", 3, "KILLED", UNTOLD, id="exits", marks=pytest.mark.slow),
        pytest.param(f"{PLAIN}raise ValueError('x')", 1, "KILLED", UNTOLD, id="raises"),
        pytest.param(f"{BLOCK}raise ValueError('x')", 1, "FAILED", "ValueError: x", id="raises-in-a-with-block"),
    ],
)
def test_a_script_leaves_no_run_that_seems_to_go_on_or_to_have_finished(
    run_dir: Path, eventually: Callable[..., None], script: str, code: int, status: str, reason: str | None
) -> None:
    done = subprocess.run([sys.executable, "-c", script, run_dir], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    at_tracker = run_dir / "csv" / "run.json"
    eventually(lambda: at_tracker.exists() and json.loads(at_tracker.read_text()).get("status") == status)
    assert run_status(run_dir) == RunStatus(status, reason, 1)

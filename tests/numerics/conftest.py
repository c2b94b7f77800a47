"""Where the reference's numbers are read from: VLATRACK_GOLDEN_DIR, or the copy beside this file."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("VLATRACK_GOLDEN_DIR") or Path(__file__).parent / "golden")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_name" in metafunc.fixturenames:
        names = sorted(file.stem for file in GOLDEN.glob("*.npz"))
        assert names, f"no golden case (*.npz) in {GOLDEN}"
        metafunc.parametrize("case_name", names, scope="session")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN

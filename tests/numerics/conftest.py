"""Where the reference's numbers are read from: VLATRACK_GOLDEN_DIR, or the copy beside this file."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("VLATRACK_GOLDEN_DIR") or Path(__file__).parent / "golden")


assert any(GOLDEN.glob("*.npz")) or any(GOLDEN.glob("*.json")), f"VLATRACK_GOLDEN_DIR: no golden file in {GOLDEN}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize("case_name", sorted(file.stem for file in GOLDEN.glob("*.npz")), scope="session")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN

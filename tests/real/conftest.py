"""Real data lie beside the repository, in shared/data, or where MMX_SHARED_DATA says."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real data, or skip."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("MMX_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: '{folder}' is not there; set MMX_SHARED_DATA")
    return folder

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("SPECTRIM_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    if not (SHARED / "models").is_dir():
        pytest.skip(f"the folder of shared checkpoints and images is not there ({SHARED})")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)  # the tests run in several processes

import os
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The embedded network and some of its images as the files that a user has."""
    from safetensors.torch import save_file

    from spectrim.demo import demo_images, demo_model

    folder = tmp_path_factory.mktemp("files")
    save_file(demo_model().state_dict(), folder / "w.safetensors")
    for part in ("calibration", "test"):
        images, labels = demo_images(part)
        count = 500 if part == "test" else 700
        np.savez(folder / f"{part}.npz", images=images[:count].numpy(), labels=labels[:count].numpy())
    return folder

import numpy as np
import pytest
from safetensors.torch import save_file

from spectrim.demo import demo_images, demo_model


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The embedded network and some of its images as the files that a user has."""
    folder = tmp_path_factory.mktemp("files")
    save_file(demo_model().state_dict(), folder / "w.safetensors")
    for part in ("calibration", "test"):
        images, labels = demo_images(part)
        count = 500 if part == "test" else 700
        np.savez(folder / f"{part}.npz", images=images[:count].numpy(), labels=labels[:count].numpy())
    return folder

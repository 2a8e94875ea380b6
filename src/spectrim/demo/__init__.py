"""The embedded default: a small real CNN, trained by us on Fashion-MNIST, with slices of its real images."""

from __future__ import annotations

import io
from functools import partial
from importlib.resources import files

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from spectrim.core.cost import Budget, MaxDrop
from spectrim.core.progress import Progress
from spectrim.core.records import Source
from spectrim.demo.net import FashionNet
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.pipeline.account import complete
from spectrim.pipeline.compress import compress
from spectrim.pipeline.config import Config
from spectrim.pipeline.result import Result
from spectrim.targets.base import Target

MEAN, STD = 0.2860, 0.3530  # of the training images
BUDGET = MaxDrop(1.5, "macs")
SOURCE = Source(
    model="spectrim.demo:demo_model",
    data="spectrim.demo:test_batches",
    calibration="spectrim.demo:calibration_batches",
    selection="spectrim.demo:selection_batches",
    images="Fashion-MNIST",
)


def demo_model() -> FashionNet:
    """Return the trained network in eval mode."""
    model = FashionNet()
    model.load_state_dict(load(files("spectrim.demo").joinpath("model.safetensors").read_bytes()))
    return model.eval()


def demo_images(part: str) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, 1, 28, 28) and labels (N,).

    Args:
        part: `calibration` (1,024 training images), `selection` (2,500 training images that the network was not trained on)
            or `test` (2,500 test images).
    """
    with np.load(io.BytesIO(files("spectrim.demo").joinpath("images.npz").read_bytes())) as archive:
        images, labels = archive[f"{part}_images"], archive[f"{part}_labels"]
    return (torch.from_numpy(images)[:, None].float() / 255 - MEAN) / STD, torch.from_numpy(labels.astype(np.int64))


def _batches(part: str) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels in batches."""
    return list(zip(*(tensor.split(500) for tensor in demo_images(part)), strict=True))


# callables of data specs of the command line, such as spectrim.demo:test_batches
calibration_batches, selection_batches, test_batches = (
    partial(_batches, part) for part in ("calibration", "selection", "test")
)


def run_demo(
    progress: Progress | None = None,
    budget: Budget = BUDGET,
    *,
    device: torch.device | str = "cpu",
    target: Target | None = None,
) -> Result:
    """Compress the embedded network; decisions on the selection images, the test images read once for the report.

    Args:
        progress: Called with the stage and its share.
        budget: What may be lost.
        device: Where the network runs.
        target: Where the report's times are taken.
    """
    model = demo_model().to(device)
    calibration = demo_images("calibration")[0].to(device)
    config = Config(progress=progress, target=target)
    result = compress(
        model, calibration[:1], budget=budget, calibration=calibration, evaluate=Accuracy(selection_batches()), config=config
    )
    score = Scorer(Accuracy(test_batches()), model).score(result.model)
    return Result(result.model, result.plan, complete(result.report, test=score, source=SOURCE))


__all__ = ["FashionNet", "calibration_batches", "demo_images", "demo_model", "run_demo", "selection_batches", "test_batches"]

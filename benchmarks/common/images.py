"""Images of the data folders as tensors, and batches of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from spectrim.cli.datasets import Batches, Form, Images, open_images
from spectrim.cli.readers import SUFFIXES

LabelledImages = tuple[Tensor, Tensor]  # images (N, C, H, W), normalised, and labels (N,)


def stored(folder: Path, split: str) -> Images:
    """Open a split, `train` or `test`, of a folder with parquet files or with the four files of Fashion-MNIST."""
    parquet = folder / f"{split}.parquet"
    return open_images(f"parquet:{parquet}" if parquet.exists() else f"fashion-mnist:{folder}", split=split)


def read(
    folder: Path, split: str, start: int = 0, stop: int | None = None, *, normalised: tuple[float, float] = (0.5, 0.5)
) -> LabelledImages:
    """Return some images of a split at their own size.

    Args:
        folder: See `stored`.
        split: `train` or `test`.
        start: Number of the first image; negative ones count from the end.
        stop: Number behind the last one; None is the end.
        normalised: Mean and deviation of grey images; those in colour have ImageNet's.
    """
    images = stored(folder, split)
    images = images.part(range(len(images))[start:stop])
    first = images.read(0)
    form = Form(1, first.shape, *([number] for number in normalised)) if first.ndim == 2 else Form(3, first.shape[:2])
    found = list(Batches(images, form, 1000))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def photographs(folder: Path, which: slice = slice(None), side: int = 224) -> Tensor:
    """Return images of a folder, sorted by name, normalised, (N, 3, side, side)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[which]
    found = Images(lambda index: np.asarray(Image.open(files[index]).convert("RGB")), range(len(files)))
    return torch.cat([batch for batch, _ in Batches(found, Form(3, (side, side)), 50)])


def bordered(images: Tensor, side: int = 32) -> Tensor:
    """Return images with a border that makes them as large as that."""
    border = (side - images.shape[-1]) // 2
    return functional.pad(images, (border,) * 4, value=float(images.min())) if border else images


def batches(images: LabelledImages, size: int = 250) -> list[LabelledImages]:
    """Return images and labels cut into batches."""
    return list(zip(images[0].split(size), images[1].split(size), strict=True))


def share(count: int, part: float) -> int:
    """Return how many images are used where a protocol says `count`, at least 16."""
    return max(16, round(count * part))

"""Training for a number of steps, on images that may grow, with progress that is printed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from common.images import LabelledImages
from spectrim.core.records import Training
from spectrim.train.batches import TensorBatches, augment

BATCH = 128


def fit(
    model: nn.Module, images: LabelledImages, steps: int, recipe: dict[str, Any], *, grow: bool = False, **given: Any
) -> Training:
    """Train for about that many steps of 128 images.

    Args:
        model: Trained in place.
        images: As many of them are used as make the steps whole epochs.
        steps: Of the optimizer.
        recipe: Settings of `st.Recipe`.
        grow: Begin with images of 16 pixels, then 24, and 32 towards the end.
        given: For `st.fit`.
    """
    epochs = max(1, math.ceil(steps / (len(images[0]) // BATCH)))
    used = max(1, steps // epochs) * BATCH
    data: Any = images[0][:used], images[1][:used]
    if grow:
        shares = [(epoch + 0.5) / epochs for epoch in range(epochs)]
        data = Growing(data, [16 if share < 0.55 else 24 if share < 0.8 else 32 for share in shares])
        recipe = recipe | {"crop": 0, "flip": False}
    return st.fit(model, data, recipe=st.Recipe(**{"epochs": epochs, "batch": BATCH, **recipe}), **given)


class Growing(TensorBatches):
    """Training batches, shifted and mirrored at full size and then shrunk to a side of its own in each epoch."""

    def __init__(self, images: LabelledImages, sides: Sequence[int]) -> None:
        """Store the arguments."""
        super().__init__(*images, size=BATCH)
        self.sides, self.epoch = sides, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the side."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[LabelledImages]:
        """Yield the batches of an epoch."""
        side = self.sides[self.epoch]
        for index, (images, labels) in enumerate(super().__iter__()):
            generator = torch.Generator().manual_seed(self.epoch * 1_000_003 + index)
            images = augment(images, 4, True, generator)
            yield functional.interpolate(images, size=(side, side), mode="area") if side < images.shape[-1] else images, labels


def printed(name: str) -> Callable[[str, float], None]:
    """Return progress that prints a line for each tenth of a training."""
    start, told = time.perf_counter(), set[int]()

    def tell(stage: str, share: float) -> None:
        if int(10 * share) not in told:
            told.add(int(10 * share))
            print(f"  {name}: {stage} {100 * share:.0f} %, {time.perf_counter() - start:.0f} s", flush=True)

    return tell

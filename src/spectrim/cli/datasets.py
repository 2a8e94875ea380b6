"""Data specs of the command line: `parquet:FILE`, `imagefolder:DIR`, `npz:FILE`, `fashion-mnist:DIR`, `module:callable`.

Images are decoded when they are needed, so a folder larger than memory works. They become float tensors (N, C, H, W): grey or
RGB as the network's input asks, resized and centre-cropped where their size differs from it, divided by 255 and normalised.

They are decoded by threads, not by the worker processes of a `DataLoader`: Pillow lets threads decode side by side, and
processes hand batches over in shared memory, which a container may lack (Docker gives 64 MB, and 128 inputs of ImageNet take
77), end with Ctrl-C before a training has saved its step, and turn the sentence about a damaged image into two tracebacks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.cli.models import made, told
from spectrim.cli.readers import READERS, Images
from spectrim.network.calling import first_line
from spectrim.train.batches import drawn, shuffled_batches

KINDS = "parquet:FILE, imagefolder:DIR, npz:FILE, fashion-mnist:DIR, module.path:callable or file.py:callable"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 10_000  # pixels of an input, beyond which resizing an image takes gigabytes
IN_MEMORY = 1 << 29  # bytes of decoded images that are kept rather than decoded again for each network
ZOOM = 256 / 224  # the shorter side before the centre crop, relative to the crop


@dataclass(frozen=True)
class Form:
    """How an image becomes an input.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        size: Height and width in pixels.
        mean, std: Per channel, after division by 255.

    Raises:
        ValueError: If there are other channels, or another number of means or standard deviations.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        """Check that there is a number for each channel."""
        if self.channels not in (1, 3):
            raise ValueError(f"the input has {self.channels} channels; image files give 1 or 3: use a callable for other data")
        if max(self.size) > SIDE:
            raise ValueError(f"the input is {self.size[0]} x {self.size[1]} pixels; allowed are at most {SIDE:,} each")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers; the input has {self.channels} channels")
            least = -1e6 if name == "mean" else 1e-6
            if not all(least <= value <= 1e6 for value in values):
                told = ", ".join(f"{value:g}" for value in values)
                raise ValueError(f"{name} is {told}; allowed are numbers from {least:g} to 1e6")


@dataclass(frozen=True)
class Batches:
    """Batches (inputs, labels) of images in a form, in order; can be read again and again.

    Attributes:
        images: The images.
        form: How they become inputs.
        size: Images of a batch; the last may have fewer.
    """

    images: Images
    form: Form
    size: int = 128

    def in_memory(self) -> Batches | list[tuple[Tensor, Tensor]]:
        """Return the batches read once and for all if they are small enough, else unchanged."""
        return list(self) if self.bytes <= IN_MEMORY else self

    @property
    def bytes(self) -> int:
        """Memory that all images take once they are decoded."""
        return len(self.images) * self.form.channels * self.form.size[0] * self.form.size[1] * 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (N, C, H, W) and labels (N,)."""
        indices = range(len(self.images))
        return _decoded(self.images, self.form, [indices[start : start + self.size] for start in indices[:: self.size]])


class ShuffledBatches:
    """Training batches of images in a form, in another order each epoch; each process gets its part of every batch.

    Args:
        images: The images.
        form: How they become inputs.
        size: Images of a batch, of all processes together.
        seed: Of the order.
    """

    def __init__(self, images: Images, form: Form, *, size: int, seed: int = 0) -> None:
        """Store the arguments."""
        self.images, self.form = images, form
        self.batch_sampler = shuffled_batches(images, size=size, seed=seed)

    def __len__(self) -> int:
        """Return the batches of an epoch; an incomplete last one is left out."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (N, C, H, W) and labels (N,)."""
        return _decoded(self.images, self.form, drawn(self.batch_sampler))


def _decoded(images: Images, form: Form, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of each batch of indices; threads decode a batch while the one before it is in use."""
    ahead: Iterator[np.ndarray] = iter(())
    with ThreadPoolExecutor() as threads:
        for batch, following in itertools.pairwise([(), *batches, ()]):
            pictures = list(ahead)
            ahead = threads.map(lambda index: to_size(images.read(index), form), following)
            if pictures:
                yield to_inputs(pictures, form), torch.tensor([int(images.labels[index]) for index in batch], device="cpu")


def to_size(image: np.ndarray, form: Form) -> np.ndarray:
    """Return an image in the channels and the size of a form, resized and centre-cropped where its own size differs.

    Args:
        image: (H, W) or (H, W, C) of uint8; floats (C, H, W) are taken as they are.
        form: What it should have.

    Returns:
        (H, W, C) of uint8, or the floats.
    """
    if image.dtype != np.uint8:
        return image
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1 and form.channels == 3:
        image = image.repeat(3, 2)
    if image.shape[:2] != form.size or image.shape[2] != form.channels:
        image = _resized(image, form)
    return image


def to_inputs(images: Sequence[np.ndarray], form: Form) -> Tensor:
    """Return images as one batch of normalised float tensors (N, C, H, W).

    Args:
        images: What `to_size` returned.
        form: For mean and standard deviation.
    """
    x = torch.from_numpy(np.stack(images))
    if x.dtype != torch.uint8:
        return x.float()
    mean, std = (torch.tensor(values, device="cpu").view(-1, 1, 1) for values in (form.mean, form.std))
    return (x.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std


def _resized(image: np.ndarray, form: Form) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture = picture.convert("L" if form.channels == 1 else "RGB")
    height, width = form.size
    if picture.size != (width, height):
        scale = max(height * ZOOM / picture.height, width * ZOOM / picture.width)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture).reshape(height, width, form.channels)


def open_images(spec: str, *, split: str = "test") -> Images:
    """Open the images that a spec names.

    Args:
        spec: Such as `parquet:test.parquet`.
        split: `train` or `test`, where one folder holds both (fashion-mnist).

    Raises:
        ValueError: If the spec is unknown, or there is nothing usable.
    """
    kind, _, name = spec.partition(":")
    if kind not in READERS or not name:
        raise ValueError(f"the data {spec!r} is not understood; allowed are {KINDS}")
    try:
        if not Path(name).exists():
            raise ValueError(f"the data {spec!r} is not there: no file or folder {name!r}")
        images = READERS[kind](Path(name), split)
    except OSError as error:
        raise ValueError(f"the data {spec!r} cannot be read: {first_line(error)}") from error
    if not len(images):
        raise ValueError(f"the data {spec!r} holds no image")
    wrong = next((label for label in images.labels if not _is_class(label)), ())
    if wrong != ():
        raise ValueError(f"the labels of {spec!r} are such as {wrong!r}; they must be one whole class number per image")
    return images


def _is_class(label: Any) -> bool:
    """Return whether a label is a whole number that a tensor can hold."""
    number = isinstance(label, (int, float)) and not isinstance(label, bool)
    return number and math.isfinite(label) and label == round(label) and abs(label) < 2**62


def is_callable_spec(spec: str) -> bool:
    """Return whether a spec names a Python callable rather than stored images."""
    kind, _, name = spec.partition(":")
    return bool(name) and kind not in READERS


def open_callable(spec: str) -> list[tuple[Tensor, Tensor]]:
    """Call `module:callable` and return its batches.

    Raises:
        ValueError: If it does not give pairs of tensors.
    """
    returned = made(spec, KINDS)
    try:
        batches = list(returned)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec!r} must return an iterable of (inputs, labels): {told(error)}") from error
    for item in batches:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not all(isinstance(value, Tensor) for value in item):
            raise ValueError(f"{spec!r} must return an iterable of (inputs, labels), both tensors")
        if not item[0].ndim or item[0].shape[:1] != item[1].shape:
            shapes = " and ".join(str(tuple(value.shape)) for value in item)
            raise ValueError(f"{spec!r} returned inputs and labels of {shapes}; there must be one class number per input")
        if not torch.isfinite(item[0]).all():
            raise ValueError(f"{spec!r} returned inputs that are NaN or infinite")
    found = [(inputs, labels) for inputs, labels in batches if len(labels)]
    if not found:
        raise ValueError(f"{spec!r} returned nothing")
    return found

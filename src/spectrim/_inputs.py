"""What the command line's words about data mean: shapes, numbers, and which images serve which purpose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spectrim.data import Batches, Form, Images, Shuffled, is_callable_spec, open_callable, open_images

DEFAULT_INPUT = (1, 3, 224, 224)
SELECTION = 5000  # images that MaxDrop decides on, taken from the calibration source behind the calibration images

TRAINING_BYTES = 1 << 30  # training images that are kept decoded


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Return a batch shape written as numbers with commas, or None if it was not given."""
    if text is None:
        return None
    try:
        shape = tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"--input is {text!r}; it must be whole numbers such as 1,3,224,224") from error
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"--input is {text!r}; it must be a batch shape of positive numbers such as 1,3,224,224")
    return shape


def _numbers(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if text is None:
        return default
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r} is no list of numbers such as 0.485,0.456,0.406") from error


@dataclass(frozen=True)
class Sources:
    """Images by purpose.

    Attributes:
        example: A batch of inputs.
        calibration: Batches for statistics and refit.
        selection: Batches that decisions are made on; from one source the same as `test`.
        test: Batches read once, for the report.
        training: What may be trained on: everything in the calibration source but `selection`; None without such a source.
    """

    example: torch.Tensor
    calibration: Any
    selection: Any
    test: Any
    training: Any = None


def split_data(
    data: str,
    calibration: str | None,
    images: tuple[int, int],
    input_shape: str | None,
    norm: tuple[str | None, str | None],
    held: float = 1.0,
) -> Sources:
    """Return the images by purpose.

    Args:
        data: Spec of the test images.
        calibration: Spec of the training images, or None.
        images: How many are for calibration, and how many more a rank selection wants to measure on; these come behind the
            others as far as they leave half of the source.
        input_shape: Shape of a batch as it was typed, or None.
        norm: Mean and standard deviation as they were typed, or None.
        held: Largest share of the calibration source that decisions may keep away from training.
    """
    if calibration is not None and is_callable_spec(data) != is_callable_spec(calibration):
        raise ValueError(
            f"of the data {data!r} and the calibration {calibration!r} one is stored images and the other a callable; give two "
            "sources of the same kind, since only stored images are normalised here"
        )
    if is_callable_spec(data):
        testing = open_callable(data)
        given = open_callable(calibration) if calibration is not None else None
        return Sources(testing[0][0][:1], given or testing, given or testing, testing, given)
    test = open_images(data)
    shape = parse_shape(input_shape) or _stored_shape(test)
    defaults = Form(shape[1], (shape[2], shape[3]), (0.5,), (0.5,)) if shape[1] == 1 else Form(shape[1], (shape[2], shape[3]))
    form = Form(shape[1], (shape[2], shape[3]), _numbers(norm[0], defaults.mean), _numbers(norm[1], defaults.std))
    source = test if calibration is None else open_images(calibration, split="train")
    half = max(1, len(source) // 2)
    count = min(images[0], len(source) if calibration is not None else half)
    count = max(count, min(sum(images), half))
    kept = min(SELECTION, max(1, int(held * len(source))))
    if held < 1:  # there will be training: what decisions look at is kept away from everything else
        count = max(1, min(count, len(source) - kept))
    order = np.random.default_rng(0).permutation(len(source)).tolist()  # stored images are often sorted by class
    first, rest = order[:count], order[count:] or order[:count]
    head = Batches(source.part(first), form)
    if calibration is None:
        others = Batches(test.part(rest), form).in_memory()
        return Sources(torch.zeros(shape), head, others, others)
    chosen = rest[:kept]
    training = Batches(source.part([*first, *order[count + kept :]]), form)
    selection = Batches(source.part(chosen), form).in_memory()
    return Sources(torch.zeros(shape), head, selection, Batches(test, form).in_memory(), training)


def training_data(training: Any, batch: int, seed: int) -> Any:
    """Return what `fit` reads: two tensors where the images fit in memory, else batches that are decoded as they are needed."""
    if isinstance(training, Batches):
        if training.bytes > TRAINING_BYTES:
            return Shuffled(training.images, training.form, size=batch, seed=seed)
        training = list(training)
    return tuple(torch.cat(column) for column in zip(*training, strict=True))


def _stored_shape(images: Images) -> tuple[int, ...]:
    """Return the input shape that stored images suggest: their own where they are small and alike, else ImageNet's."""
    sizes = {images.read(index).shape for index in range(min(8, len(images)))}
    if len(sizes) != 1:
        return DEFAULT_INPUT
    size = sizes.pop()
    if images.read(0).dtype.kind == "f":
        return (1, *size)
    channels = 1 if len(size) == 2 else size[2]
    return (1, channels, *size[:2]) if max(size[:2]) <= 96 else DEFAULT_INPUT


def first_examples(batches: Any, count: int) -> Any:
    """Return the batches of the first `count` examples."""
    if isinstance(batches, Batches):
        return dataclasses.replace(batches, images=batches.images.part(range(min(count, len(batches.images)))))
    kept = []
    for inputs, labels in batches:
        kept.append((inputs[:count], labels[:count]))
        count -= len(kept[-1][0])
        if count <= 0:
            break
    return kept

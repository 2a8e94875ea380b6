"""What the command line's words about data mean: shapes, numbers, and which images serve which purpose."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from spectrim.data import Batches, Form, Images, is_callable_spec, open_callable, open_images

DEFAULT_INPUT = (1, 3, 224, 224)
SELECTION = 5000  # images that MaxDrop decides on, taken from the calibration source behind the calibration images


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


def split_data(
    data: str, calibration: str | None, images: int, input_shape: str | None, mean: str | None, std: str | None
) -> tuple[torch.Tensor, Any, Any, Any]:
    """Return an example and the batches for calibration, selection and test; from one source the last two are the same."""
    if is_callable_spec(data):
        testing = open_callable(data)
        training = open_callable(calibration) if calibration is not None else testing
        return testing[0][0][:1], training, training, testing
    test = open_images(data)
    shape = parse_shape(input_shape) or _stored_shape(test)
    defaults = Form(shape[1], (shape[2], shape[3]), (0.5,), (0.5,)) if shape[1] == 1 else Form(shape[1], (shape[2], shape[3]))
    form = Form(shape[1], (shape[2], shape[3]), _numbers(mean, defaults.mean), _numbers(std, defaults.std))
    source = test if calibration is None else open_images(calibration, split="train")
    count = min(images, len(source) if calibration is not None else max(1, len(source) // 2))
    order = np.random.default_rng(0).permutation(len(source)).tolist()  # stored images are often sorted by class
    first, rest = order[:count], order[count:] or order[:count]
    head = Batches(source.part(first), form)
    if calibration is None:
        held = Batches(test.part(rest), form).in_memory()
        return torch.zeros(shape), head, held, held
    chosen = Batches(source.part(rest[:SELECTION]), form)
    return torch.zeros(shape), head, chosen.in_memory(), Batches(test, form).in_memory()


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

"""What the command line's words about data mean: shapes, numbers, and which images serve which purpose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spectrim.cli.datasets import KINDS, Batches, Form, ShuffledBatches, is_callable_spec, open_callable, open_images
from spectrim.cli.models import import_callable
from spectrim.cli.readers import Images

DEFAULT_INPUT = (1, 3, 224, 224)
LARGEST = 1 << 28  # values of a batch: a gigabyte
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
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise ValueError(
            f"--input is {text!r}; it must be a batch shape of positive numbers such as 1,3,224,224, {LARGEST:,} values at most"
        )
    return shape


def numbers_of(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return numbers written with commas, or others if nothing was given."""
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
        form: How stored images become inputs; None for floats and those of a callable, which are taken as they are.
        classes: Names of the classes, where the images are in folders.
    """

    example: torch.Tensor
    calibration: Any
    selection: Any
    test: Any
    training: Any = None
    form: Form | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Specs:
    """What was typed about the images.

    Attributes:
        data: The test images.
        calibration: The training images, or None.
        selection: The images that decisions are made on; None takes them from the calibration source.
        input_shape: Shape of a batch, or None.
        mean, std: Numbers with commas, or None.
    """

    data: str
    calibration: str | None = None
    selection: str | None = None
    input_shape: str | None = None
    mean: str | None = None
    std: str | None = None

    def named(self) -> dict[str, str]:
        """Return the specs that were given, by purpose, once they are known to go together.

        Raises:
            ValueError: If they do not.
        """
        specs = {"data": self.data, "calibration": self.calibration, "selection": self.selection}
        given = {name: spec for name, spec in specs.items() if spec is not None}
        if len({is_callable_spec(spec) for spec in given.values()}) > 1:
            for spec in filter(is_callable_spec, given.values()):
                import_callable(spec, KINDS)  # a kind of stored images that is misspelt says so
            words = ", ".join(f"--{name} {spec!r}" for name, spec in given.items())
            raise ValueError(
                f"of {words} some are stored images and some a callable; give all of the same kind, since only stored "
                "images are normalised here"
            )
        if self.selection is not None and self.selection in (self.data, self.calibration):
            raise ValueError(f"--selection {self.selection!r} names the images of --data or --calibration; it must be others")
        return given


def split_data(specs: Specs, *, images: tuple[int, int], validation: float = 0.0) -> Sources:
    """Return the images by purpose.

    Args:
        specs: Where they are, and what becomes of them.
        images: How many are for calibration, and how many more a rank selection wants to measure on; these come behind the
            others as far as they leave half of the source.
        validation: Largest share of the calibration source that decisions may keep away from training. 1: there will be no
            training, but decisions, and of a small source they get half. 0: neither.
    """
    given = specs.named()
    pools: dict[str, _Stored | _Given]
    form = None
    classes: tuple[str, ...] = ()
    if is_callable_spec(specs.data):
        pools = {name: _Given(open_callable(spec)) for name, spec in given.items()}
        example = pools["data"].part([0])[0][0]
    else:
        opened = {name: open_images(spec, split="test" if name == "data" else "train") for name, spec in given.items()}
        shape = parse_shape(specs.input_shape) or _stored_shape(opened["data"])
        if len(shape) != 4:
            raise ValueError(
                f"--input is {specs.input_shape!r}; stored images need batch, channels, height and width, such as 1,3,224,224"
            )
        classes = _classes(opened)
        form, example = _form(shape, specs), torch.zeros(shape)
        pools = {name: _Stored(images, form) for name, images in opened.items()}
        form = None if opened["data"].read(0).dtype.kind == "f" else form
    source = pools.get("calibration", pools["data"])
    half = max(1, len(source) // 2)
    shared = specs.selection is None and validation == 1  # decisions need images of this source, too
    count = min(images[0], half if specs.calibration is None or shared else len(source))
    count = max(count, min(sum(images), half))
    reserved = 0 if specs.selection is not None else min(SELECTION, max(1, int((validation or 1) * len(source))))
    if 0 < validation < 1:  # there will be training: what decisions look at is kept away from everything else
        count = max(1, min(count, len(source) - reserved))
    order = np.random.default_rng(0).permutation(len(source)).tolist()  # stored images are often sorted by class
    first, rest = order[:count], order[count:] or order[:count]
    head = source.part(first)
    chosen = pools["selection"].whole() if "selection" in pools else None
    if specs.calibration is None:
        others = _in_memory(source.part(rest))
        return Sources(example, head, others if chosen is None else _in_memory(chosen), others, None, form, classes)
    training = source.part([*first, *order[count + reserved :]])
    deciding = source.part(rest[:reserved]) if chosen is None else chosen
    return Sources(example, head, _in_memory(deciding), _in_memory(pools["data"].whole()), training, form, classes)


def _classes(opened: Mapping[str, Images]) -> tuple[str, ...]:
    """Return the names of the classes, which number the labels, if images are in folders.

    Raises:
        ValueError: If sources have other names, and so other numbers.
    """
    named = {name: images.classes for name, images in opened.items() if images.classes}
    for name, classes in named.items():
        other = next(iter(named))
        if classes != named[other]:
            first = sorted(set(classes) ^ set(named[other]))[0]
            raise ValueError(
                f"--{other} has {len(named[other])} folders of classes and --{name} {len(classes)}, and {first!r} is not in "
                "both: classes are numbered by the order of their folders, which must be the same"
            )
    return next(iter(named.values()), ())


@dataclass(frozen=True)
class _Stored:
    """Stored images, of which batches of some are made."""

    images: Images
    form: Form

    def __len__(self) -> int:
        return len(self.images)

    def whole(self) -> Any:
        return Batches(self.images, self.form)

    def part(self, indices: Sequence[int]) -> Any:
        return Batches(self.images.part(indices), self.form)


@dataclass(frozen=True)
class _Given:
    """Batches of a callable; a part of them are the same batches with fewer examples, in their order."""

    batches: list[tuple[torch.Tensor, torch.Tensor]]

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.batches)

    def whole(self) -> Any:
        return self.batches

    def part(self, indices: Sequence[int]) -> Any:
        wanted = torch.zeros(len(self), dtype=torch.bool)
        wanted[torch.tensor(indices, dtype=torch.int64)] = True
        masks = wanted.split([len(labels) for _, labels in self.batches])
        return [(x[mask], y[mask]) for (x, y), mask in zip(self.batches, masks, strict=True) if mask.any()]


def _form(shape: tuple[int, ...], specs: Specs) -> Form:
    usual = Form(shape[1], (shape[2], shape[3]), (0.5,), (0.5,)) if shape[1] == 1 else Form(shape[1], (shape[2], shape[3]))
    return dataclasses.replace(usual, mean=numbers_of(specs.mean, usual.mean), std=numbers_of(specs.std, usual.std))


def _in_memory(batches: Any) -> Any:
    return batches.in_memory() if isinstance(batches, Batches) else batches


def training_data(training: Any, batch: int, seed: int) -> Any:
    """Return what `fit` reads: two tensors where the images fit in memory, else batches that are decoded as they are needed."""
    if isinstance(training, Batches):
        if training.bytes > TRAINING_BYTES:
            return ShuffledBatches(training.images, training.form, size=batch, seed=seed)
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
    found = []
    for inputs, labels in batches:
        found.append((inputs[:count], labels[:count]))
        count -= len(found[-1][0])
        if count <= 0:
            break
    return found

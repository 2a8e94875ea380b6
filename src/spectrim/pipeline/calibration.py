"""Calibration data: from whatever iterable the user has to checked batches in the form of the example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from spectrim.network.calling import Example, batch_size
from spectrim.pipeline.config import Config

JUDGED = (16, 512)  # images that no fit sees, at least and at most so many
ENOUGH = 48  # images from which on some are kept away from the fits


@dataclass(frozen=True)
class Images:
    """Calibration inputs by purpose, in batches on the device and in the dtype of the example.

    Attributes:
        fitting: For moments and fits.
        unseen: Seen by no fit: on these the report measures the harm that was done. Empty where there are too few images.
        further: Beyond these: a rank selection may measure on them.
    """

    fitting: list[Example]
    unseen: list[Example]
    further: list[Example]


def judging(images: int, share: float) -> int:
    """Return how many images judge at least, beside so many for fits, where such a share is asked for."""
    least, most = JUDGED
    return min(most, max(least, int(share * images)))


def collect(
    calibration: Iterable[Any] | None, example: Example, config: Config, batch: int, *, further: int = 0, unit: int = 1
) -> Images:
    """Read images, and divide them by purpose.

    Args:
        calibration: Iterable of inputs or (inputs, targets), or one tensor; None gives no batches.
        example: Says what inputs look like. Its tensors with the batch in dimension 0 come from the items, all else (flags,
            constant tables, None) from the example itself.
        config: How many are for fits at most (they stay in memory), and which share judges; more do where there are more.
        batch: Size of the batches returned.
        further: How many are read beyond those of fits and judgement; only whole batches of these are returned.
        unit: Batches are multiples of so many, for networks whose examples belong together.

    Raises:
        ValueError: If there is nothing, a shape differs from the example's, or a value is not finite.
        TypeError: If it is no iterable, or what it gives has other tensors than the example.
    """
    if calibration is None:
        return Images([], [], [])
    if isinstance(calibration, Tensor):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise TypeError(f"the calibration data is {type(calibration).__name__}; it must be an iterable of batches")
    images = config.images
    wanted = images + JUDGED[1] + further
    columns: list[list[Tensor]] = [[] for _ in _columns(example)]
    read = 0
    for item in calibration:
        tensors = _checked(item, example)
        for column, tensor in zip(columns, tensors, strict=True):
            column.append(tensor[: wanted - read])
        read += len(columns[0][-1])
        if read >= wanted:
            break
    if not read:
        raise ValueError("the calibration data is empty; give at least one batch (a generator can be read only once)")
    whole = [torch.cat(column) for column in columns]
    spare = min(JUDGED[1], read - images - further)  # what no fit and no rank selection wants may judge, too
    judged = 0 if read < ENOUGH else max(spare, judging(min(read, images), config.judging)) // unit * unit
    first = min(images, read - judged)
    first = max(first // unit * unit, min(first, unit))
    batch = max(batch // unit * unit, unit)

    def cut(start: int, stop: int, step: int) -> Example:
        return _like(example, [column[start : min(start + step, stop)] for column in whole])

    behind = first + judged
    return Images(
        [cut(start, first, batch) for start in range(0, first, batch)],
        [cut(start, behind, batch) for start in range(first, behind, batch)],
        [cut(start, read, batch) for start in range(behind, min(read, behind + further) - batch + 1, batch)],
    )


def _columns(example: Example) -> list[int]:
    """Return the numbers of the leaves that have the batch in dimension 0."""
    size = batch_size(example)
    leaves = tree_flatten(example)[0]
    return [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == size]


def _checked(item: Any, example: Example) -> list[Tensor]:
    """Return the tensors of one item, which may carry targets behind its inputs, on the device and in the dtype of the example.

    Raises:
        ValueError: If a shape differs from the example's, or a value is not finite.
        TypeError: If they are not those of the example.
    """
    leaves = tree_flatten(example)[0]
    like = [leaves[index] for index in _columns(example)]
    tensors = _inputs(item, example)
    for tensor, wanted in zip(tensors, like, strict=True):
        if tensor.shape[1:] != wanted.shape[1:] or not tensor.ndim:
            raise ValueError(
                f"calibration inputs have shape {tuple(tensor.shape)}; the example says (batch, "
                f"{', '.join(map(str, wanted.shape[1:]))}): give both the same size"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError("the calibration data holds NaN or infinite values")
        if len(tensor) != len(tensors[0]):
            raise ValueError(f"calibration inputs have {len(tensors[0])} and {len(tensor)} examples in one item; give as many")
    return [tensor.to(wanted) for tensor, wanted in zip(tensors, like, strict=True)]


def _inputs(item: Any, example: Example) -> list[Tensor]:
    """Return the tensors of the item that stand where the example's batched ones do."""
    if isinstance(example, dict):
        item = item[0] if isinstance(item, (tuple, list)) else item
        if not isinstance(item, dict) or not all(key in item for key in example):
            raise TypeError(
                f"calibration items must be dicts with tensors under the keys {', '.join(example)}, as the example is"
            )
        item = {key: item[key] for key in example}
    elif isinstance(item, (tuple, list)) and item and (isinstance(example, Tensor) or isinstance(item[0], (tuple, list))):
        item = item[0]
    elif isinstance(item, (tuple, list)) and isinstance(example, (tuple, list)):
        item = type(example)(item[: len(example)])
    places, leaves = _columns(example), tree_flatten(item)[0]
    total = len(tree_flatten(example)[0])
    if len(leaves) == len(places) and all(isinstance(leaf, Tensor) for leaf in leaves):
        return leaves  # without the constants
    if len(leaves) < total or not all(isinstance(leaves[index], Tensor) for index in places):
        raise TypeError(
            f"calibration items are {type(item).__name__}; they must be inputs or (inputs, targets), with tensors where the "
            "example has them"
        )
    return [leaves[index] for index in places]


def _like(example: Example, tensors: Sequence[Tensor]) -> Example:
    """Return the example with other tensors where it has the batch in dimension 0."""
    leaves, nesting = tree_flatten(example)
    for index, tensor in zip(_columns(example), tensors, strict=True):
        leaves[index] = tensor
    return tree_unflatten(leaves, nesting)

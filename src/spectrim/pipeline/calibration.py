"""Calibration data: from whatever iterable the user has to a checked list of batches in the form of the example."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from spectrim.network.calling import Example, tensors_of


def collect(
    calibration: Iterable[Any] | None, example: Example, images: int, batch: int, *, more: int = 0
) -> tuple[list[Example], list[Example]]:
    """Read at most `images` examples, and at most `more` behind them, and cut both into batches.

    Args:
        calibration: Iterable of inputs or (inputs, targets), or one tensor; None gives no batches.
        example: Says what inputs look like: a tensor, a tuple of tensors or a dict of tensors.
        images: How many are read at most; they stay in memory.
        batch: Size of the batches returned.
        more: How many are read beyond them; only whole batches of these are kept.

    Returns:
        Both lists of batches, on the device and in the dtype of the example.

    Raises:
        ValueError: If there is nothing, a shape differs from the example's, or a value is not finite.
        TypeError: If it is no iterable, what it gives has no tensors, or the example has something else among them.
    """
    if calibration is None:
        return [], []
    if isinstance(calibration, Tensor):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise TypeError(f"the calibration data is {type(calibration).__name__}; it must be an iterable of batches")
    _check(example)
    wanted = tensors_of(example)
    columns: list[list[Tensor]] = [[] for _ in wanted]
    count = 0
    for item in calibration:
        tensors = _inputs(item, example)
        for column, tensor, like in zip(columns, tensors, wanted, strict=True):
            if tensor.shape[1:] != like.shape[1:]:
                raise ValueError(
                    f"calibration inputs have shape {tuple(tensor.shape)}; the example says (batch, "
                    f"{', '.join(map(str, like.shape[1:]))}): give both the same size"
                )
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError("the calibration data holds NaN or infinite values")
            column.append(tensor[: images + more - count].to(like))
        count += len(columns[0][-1])
        if count >= images + more:
            break
    if not count:
        raise ValueError("the calibration data is empty; give at least one batch (a generator can be read only once)")
    whole = [torch.cat(column) for column in columns]
    first = min(count, images)
    cuts = [(start, min(start + batch, first)) for start in range(0, first, batch)]
    beyond = [(start, start + batch) for start in range(first, count - batch + 1, batch)]
    return tuple(  # type: ignore[return-value]
        [_like(example, [column[start:stop] for column in whole]) for start, stop in part] for part in (cuts, beyond)
    )


def _check(example: Example) -> None:
    """Check that the example is a tensor, or a tuple or dict of nothing but tensors."""
    parts = {} if isinstance(example, Tensor) else example if isinstance(example, dict) else dict(enumerate(example))
    for name, part in parts.items():
        if not isinstance(part, Tensor):
            raise TypeError(
                f"the example's {name!r} is {type(part).__name__}; with calibration data all its values must be tensors: "
                "wrap the model in a module that passes the others"
            )


def _inputs(item: Any, example: Example) -> list[Tensor]:
    """Return the input tensors of one item, which may carry targets behind them."""
    wanted = len(tensors_of(example))
    if isinstance(example, dict):
        item = item[0] if isinstance(item, (tuple, list)) else item
        if not isinstance(item, dict) or not all(isinstance(item.get(key), Tensor) for key in example):
            raise TypeError(
                f"calibration items must be dicts with tensors under the keys {', '.join(example)}, as the example is"
            )
        return [item[key] for key in example]
    if isinstance(item, (tuple, list)) and item and (isinstance(example, Tensor) or isinstance(item[0], (tuple, list))):
        item = item[0]
    tensors = tensors_of(item)[:wanted]
    if len(tensors) != wanted:
        raise TypeError(
            f"calibration items are {type(item).__name__}; they must be inputs or (inputs, targets), like the example"
        )
    return tensors


def _like(example: Example, tensors: list[Tensor]) -> Example:
    if isinstance(example, Tensor):
        return tensors[0]
    if isinstance(example, dict):
        return dict(zip(example, tensors, strict=True))
    return tuple(tensors)

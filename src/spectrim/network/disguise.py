"""Convolutions in disguise: subclasses whose forward pads, computes its weight from another, or casts, and then convolves.

What such a layer computes is found by running it and looking at the one convolution inside: a stock layer with a fixed zero
padding and a fixed weight, which is compared with the layer on what the example gives it and on random inputs of that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from spectrim.network.calling import STOCK

Pads = tuple[tuple[int, int], ...]
TOLERANCE = 1e-4  # of the largest output, in single precision; a hundred times as much in half precision


@dataclass(frozen=True)
class Unmasked:
    """The stock convolution that a layer computes.

    Attributes:
        weight: Its kernel, as torch stores it.
        padding: Zeros at both ends of each spatial axis.
        pad: Zeros put around the input first, before and behind on each axis, where both ends differ; else empty.
        baked: Whether the weight is computed from the module's own.
    """

    weight: Tensor
    padding: tuple[int, ...]
    pad: Pads
    baked: bool


@dataclass(frozen=True)
class Inside:
    """What a layer does with an input.

    Attributes:
        layer: The stock convolution inside.
        result: What that returns.
        answer: What the layer returns.
    """

    layer: Unmasked
    result: Tensor
    answer: Any


class _Recorder(TorchDispatchMode):
    """Keeps the arguments and the answer of every convolution, as they were before anything changed them in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[Any, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.found.append(((args[0].clone(), args[1].clone(), *args[2:]), result.clone()))
        return result


def unmask(module: nn.Module, x: Tensor) -> Unmasked | str:
    """Return the stock convolution that a layer computes, or why there is none.

    Args:
        module: A convolution of a subclass of torch's, in eval mode.
        x: An input (N, S, *spatial).
    """
    name = type(module).__name__
    found = _only(look_inside(module, x))
    if isinstance(found, str):
        return f"{name} {found}, so a stock layer may not equal it"
    generator = torch.Generator().manual_seed(0)
    wide = 10 * torch.randn(x.shape, generator=generator, device="cpu").to(x)  # beyond where a clamp does nothing
    other = _only(look_inside(module, wide))
    if isinstance(other, str) or (other.padding, other.pad) != (found.padding, found.pad):
        return f"{name} pads its input otherwise for other inputs of one size, so a stock layer may not equal it"
    if not close(found.weight, other.weight):
        return f"{name} computes its weight from its input, so a stock layer cannot equal it"
    return found


def effective_weight(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return the kernel that a layer computes from its own weight.

    Args:
        module: A layer that `unmask` has looked into.
        shape: Of an input of one example.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        module.forward(weight.new_zeros(1, *shape))
    found: Tensor = recorder.found[0][0][1]
    return found


def look_inside(module: nn.Module, x: Tensor) -> Inside | str:
    """Run a layer and return the one convolution inside, or why there is no stock one."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        answer = module.forward(x.clone())
    if len(recorder.found) != 1:
        return f"computes {len(recorder.found)} convolutions"
    (inner, weight, bias, stride, padding, dilation, transposed, output_padding, groups), result = recorder.found[0]
    own: Any = module
    geometry = tuple(stride) == tuple(own.stride) and tuple(dilation) == tuple(own.dilation) and groups == own.groups
    if transposed or any(output_padding) or not geometry or weight.shape != own.weight.shape:
        return "convolves with another geometry than its own"
    if (bias is None) != (own.bias is None) or (bias is not None and not close(bias, own.bias)):
        return "computes its bias from another"
    pads = _pads(x, inner)
    if pads is None:
        return "changes its input by more than zeros around it"
    baked = not close(weight, own.weight)
    if all(before == behind for before, behind in pads):
        padding = tuple(p + pad[0] for p, pad in zip(padding, pads, strict=True))
        return Inside(Unmasked(weight, padding, (), baked), result, answer)
    around = tuple((p + before, p + behind) for p, (before, behind) in zip(padding, pads, strict=True))
    return Inside(Unmasked(weight, (0,) * len(around), around, baked), result, answer)


def _only(inside: Inside | str) -> Unmasked | str:
    """Return the convolution inside, if the layer does nothing else."""
    if isinstance(inside, str):
        return inside
    answer, result = inside.answer, inside.result
    if not isinstance(answer, Tensor) or answer.shape != result.shape or not close(answer, result):
        return "does more than a convolution (a norm, an activation or a scale inside)"
    return inside.layer


def overridden(module: nn.Module) -> str:
    """Return the method in which a layer's class computes otherwise than torch's, or nothing."""
    base = next(kind for kind in STOCK if isinstance(module, kind))
    methods = ("forward", "_conv_forward")
    return next((name for name in methods if getattr(type(module), name, None) is not getattr(base, name, None)), "")


def _pads(x: Tensor, inner: Tensor) -> Pads | None:
    """Return how many zeros stand before and behind an input on each axis of what is convolved; None if it is changed."""
    sizes = list(zip(x.shape[2:], inner.shape[2:], strict=True)) if x.ndim == inner.ndim else []
    if not sizes or x.shape[:2] != inner.shape[:2] or any(inside < size for size, inside in sizes):
        return None
    pads: list[tuple[int, int]] = []
    for axis, (size, inside) in enumerate(sizes):
        others = tuple(other for other in range(x.ndim) if other != axis + 2)
        outline, wanted = inner.abs().float().sum(others), x.abs().float().sum(others)
        fitting = [start for start in range(inside - size + 1) if close(outline[start : start + size], wanted)]
        if not fitting:
            return None
        middle = min(fitting, key=lambda start: abs(2 * start - (inside - size)))
        pads.append((middle, inside - size - middle))
    flat = [number for pair in reversed(pads) for number in pair]
    return tuple(pads) if close(functional.pad(x, flat), inner) else None


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are the same but for rounding."""
    if first.shape != second.shape:
        return False
    share = TOLERANCE if min(first.element_size(), second.element_size()) >= 4 else 100 * TOLERANCE
    a, b = first.detach().float(), second.detach().float()
    return bool((a - b).abs().max() <= share * b.abs().max() + 1e-12) if a.numel() else True

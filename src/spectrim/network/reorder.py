"""Moves the order of a `Pivot`'s channels into the layers that read them, so that no channel is moved when the network runs.

A run under a dispatch mode follows each Pivot's output. Where everything that it reaches acts on each channel alone (norms,
activations, depthwise convolutions, pooling) until layers mix the channels, the numbers of these layers are put into the order
in which the Pivot makes its channels. Anything else keeps the order where it is: sums, concatenations, outputs, hooks,
and weights that are shared, computed, or read more than once. This sees tensors, not module classes, so it works for any graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrim.network.apart import swap
from spectrim.network.build import HOOKS
from spectrim.network.calling import Example, call, evaluation_mode, same_outputs, seeded, tensors_of
from spectrim.network.copying import duplicate
from spectrim.network.pivot import Pivot

aten = torch.ops.aten
NORMS = (
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
    aten._batch_norm_no_update.default,
)
ALIKE = ("clone", "_to_copy", "detach", "alias", "hardswish", "hardswish_")  # beside those that torch tags as pointwise
POOLS = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "upsample_", "reflection_pad", "replication_pad")
VIEWS = ("view", "_unsafe_view", "squeeze", "unsqueeze", "_reshape_alias")


@dataclass(frozen=True)
class _Step:
    """What an operation does to channels: where they are afterwards, None if it mixed them, and what it reads along them."""

    axis: int | None
    read: tuple[tuple[Tensor, int], ...] = ()


def reordered(model: nn.Module, example: Example) -> nn.Module:
    """Return a copy of a network whose Pivots need no order where the layers behind them can take it; else the network itself.

    Args:
        model: A compressed network.
        example: A batch of inputs.
    """
    if not any(isinstance(module, Pivot) and module.order is not None for module in model.modules()):
        return model
    small = duplicate(model)
    wanted = seeded(small, example)
    for pivot, read in _readers(small, example).items():
        assert pivot.order is not None
        order = pivot.order.argsort()
        pivot.order = None
        with torch.no_grad():
            for tensor, axis in read:
                tensor.copy_(tensor.index_select(axis, order))
    return small if same_outputs(wanted, seeded(small, example)) else model


def unmoved(model: nn.Module) -> nn.Module:
    """Return a copy in which layers without bias compute the outputs that Pivots move; the network itself if there are none."""
    if not any(_moves_bare(module) for module in model.modules()):
        return model
    small = duplicate(model)
    moving: list[Any] = [module for module in small.modules() if _moves_bare(module)]
    for pivot in moving:
        swap(small, pivot, pivot.dense())
    return small.train(model.training)


def _moves_bare(module: nn.Module) -> bool:
    """Whether it is a Pivot that moves channels which a layer without bias makes."""
    if not isinstance(module, Pivot) or module.order is None:
        return False
    rest: Any = module.rest
    return rest.bias is None or not bool(rest.bias.any())


def _readers(model: nn.Module, example: Example) -> dict[Pivot, list[tuple[Tensor, int]]]:
    """Return the Pivots whose order can be moved, with the tensors that have their channels, and along which axis."""
    follower = _Follower(model)
    handles = []
    called: Counter[Pivot] = Counter()

    def start(module: Any, args: Any, output: Tensor) -> None:
        called[module] += 1
        if module.order is not None:
            follower.begin(module, output)

    def watch(module: nn.Module, args: Any, output: Any = None) -> None:
        follower.refuse(tensors_of([args, output]))

    for module in model.modules():
        if any(getattr(module, hooks, None) for hooks in HOOKS):
            handles += [module.register_forward_pre_hook(watch), module.register_forward_hook(watch)]
        if isinstance(module, Pivot):
            handles.append(module.register_forward_hook(start, prepend=True))
    try:
        with evaluation_mode(model), torch.no_grad(), follower:
            follower.refuse(tensors_of(call(model, example)))
    finally:
        for handle in handles:
            handle.remove()
    if not all(follower.uses[id(parameter)] for parameter in model.parameters() if parameter.numel()):
        return {}  # some layers run at other times, and may read what nobody saw them read
    return {
        pivot: read
        for pivot, read in follower.read.items()
        if pivot not in follower.refused and called[pivot] == 1 and all(follower.uses[id(tensor)] == 1 for tensor, _ in read)
    }


class _Follower(TorchDispatchMode):
    """Follows the channels of Pivots from operation to operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        places = [
            tensor
            for _, module in model.named_modules(remove_duplicate=False)
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and tensor.numel()
        ]
        owners = Counter(tensor.untyped_storage().data_ptr() for tensor in places)
        self.owned = {id(tensor) for tensor in places if owners[tensor.untyped_storage().data_ptr()] == 1}
        self.channels: dict[int, tuple[Pivot, int]] = {}
        self.weights: dict[int, Tensor] = {}  # transposed weights of linear layers
        self.read: dict[Pivot, list[tuple[Tensor, int]]] = {}
        self.refused: set[Pivot] = set()
        self.uses: Counter[int] = Counter()
        self.alive: list[Tensor] = []

    def begin(self, pivot: Pivot, output: Tensor) -> None:
        """Follow a Pivot's output."""
        self.read.setdefault(pivot, [])
        self.channels[id(output)] = pivot, output.ndim + pivot.axis
        self.alive.append(output)

    def refuse(self, tensors: Sequence[Tensor]) -> None:
        """Leave the orders of these tensors, if they have one, where they are."""
        self.refused |= {self.channels[id(tensor)][0] for tensor in tensors if id(tensor) in self.channels}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_of([args, list((kwargs or {}).values())]), tensors_of(result)
        self.alive += [*inputs, *outputs]  # keeps every id unique
        self.uses.update(id(tensor) for tensor in inputs)
        if func is aten.t.default and id(args[0]) in self.owned:
            self.weights[id(result)] = args[0]
        touched = [tensor for tensor in inputs if id(tensor) in self.channels]
        if touched:
            pivot, axis = self.channels[id(touched[0])]
            together = all(self.channels[id(tensor)] == (pivot, axis) for tensor in touched)
            step = self._step(func, args, outputs, axis) if together else None
            if step is None or not all(id(tensor) in self.owned for tensor, _ in step.read):
                self.refuse(touched)
            else:
                self.read[pivot] += step.read
                if step.axis is not None:
                    self.channels[id(outputs[0])] = pivot, step.axis
        return result

    def _step(self, func: Any, args: Any, outputs: Sequence[Tensor], axis: int) -> _Step | None:
        """Return what an operation on followed channels does; None if it is none that can be followed."""
        if func in (aten.addmm.default, aten.mm.default):
            x, weight = args[-2:]
            readable = id(x) in self.channels and axis == 1 and id(weight) in self.weights
            return _Step(None, ((self.weights[id(weight)], 1),)) if readable else None
        if not isinstance(args[0], Tensor) or id(args[0]) not in self.channels or not outputs:
            return None
        x, name = args[0], func.overloadpacket.__name__
        if torch.Tag.pointwise in func.tags or name in ALIKE:
            others = [tensor for tensor in tensors_of(list(args)) if tensor.numel() > 1]
            alike = all(tensor.shape == x.shape and id(tensor) in self.channels for tensor in others)
            return _Step(axis) if alike and outputs[0].shape == x.shape else None
        if any(id(tensor) in self.channels for tensor in tensors_of(list(args[1:]))):
            return None
        if name in VIEWS:
            return _viewed(x.shape, outputs[0].shape, axis)
        if name in STEPS:
            return STEPS[name](axis, *args)
        if axis == 1 and func in NORMS:
            return _Step(axis, tuple((tensor, 0) for tensor in args[1:5] if tensor is not None))
        return _Step(axis) if axis == 1 and x.ndim > 2 and name.startswith(POOLS) else None


def _viewed(old: Sequence[int], new: Sequence[int], axis: int) -> _Step | None:
    """Find the axis with as many channels and as many numbers before it, if there is one."""
    for other, size in enumerate(new):
        if size == old[axis] and math.prod(new[:other]) == math.prod(old[:axis]):
            return _Step(other)
    return None


def _convolved(axis: int, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> _Step | None:
    """Pass a convolution that mixes all channels, or none; one of several groups of channels cannot take an order."""
    transposed, groups = options[3], options[5]
    if axis != 1 or x.ndim != weight.ndim:
        return None
    if groups == 1:
        return _Step(None, ((weight, 0 if transposed else 1),))
    one_each = groups == x.shape[1] == weight.shape[0] and weight.shape[1] == 1
    return _Step(axis, ((weight, 0), *([] if bias is None else [(bias, 0)]))) if one_each else None


def _permuted(axis: int, x: Tensor, axes: Sequence[int]) -> _Step:
    return _Step([other % x.ndim for other in axes].index(axis))


def _padded(axis: int, x: Tensor, pad: Sequence[int], *_: Any) -> _Step | None:
    return _Step(axis) if len(pad) <= 2 * (x.ndim - 1 - axis) else None


def _normed(axis: int, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, *_: Any) -> _Step | None:
    """Pass a layer norm over the channels alone."""
    read = tuple((tensor, 0) for tensor in (weight, bias) if tensor is not None)
    return _Step(axis, read) if axis == x.ndim - 1 and len(shape) == 1 else None


def _averaged(axis: int, x: Tensor, axes: Sequence[int] | None = None, keep: bool = False, *_: Any) -> _Step | None:
    """Pass a mean, sum or maximum over other axes."""
    gone = {other % x.ndim for other in axes or range(x.ndim)}
    return None if axis in gone else _Step(axis if keep else axis - sum(other < axis for other in gone))


STEPS: dict[str, Callable[..., _Step | None]] = {
    "convolution": _convolved,
    "permute": _permuted,
    "constant_pad_nd": _padded,
    "native_layer_norm": _normed,
    **dict.fromkeys(("mean", "sum", "amax"), _averaged),
}

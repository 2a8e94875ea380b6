"""What a first run tells of a network: which layers are called once, and which end in a residual addition.

At a residual addition the target of a refit is the block's output: (branch + shortcut) of the original less the compressed
shortcut. A run under a dispatch mode finds additions one of whose operands is a planned layer's output, up to per-channel
affine operations such as BatchNorm. That layer is then fitted at the addition, where both shortcuts are known. This sees
tensors, not module classes, so it works for any graph; where nothing is found the target is the layer's own output.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrim.network.calling import Example, batch_size, call, tensors_of
from spectrim.network.reorder import NORMS

aten = torch.ops.aten
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
DETACH = aten.detach.default  # not counted: it also follows a tensor's making (`torch.zeros`), if someone holds the tensor


@dataclass(frozen=True)
class Addition:
    """Where a layer's branch meets its shortcut.

    Attributes:
        layer: Name of the last layer of the branch.
        operand: Which operand of the addition comes from it, 0 or 1.
        scale, shift: The operand is scale * (output of the layer) + shift, per channel (T,).
    """

    layer: str
    operand: int
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class _Chain:
    layer: str
    scale: Tensor
    shift: Tensor
    tensors: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What a first run found.

    Attributes:
        once: Layers that one forward calls once, in order.
        additions: Where branches meet shortcuts, by the number of the operation.
        waiting: Layer name to the bytes of one example that are alive while the twin stream waits for its fit.
    """

    once: tuple[str, ...]
    additions: dict[int, Addition]
    waiting: dict[str, int]


class _Tracer(TorchDispatchMode):
    """Follows each planned layer's output through per-channel affine operations to an addition."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = 0
        self.origins: dict[int, _Chain] = {}
        self.uses: Counter[int] = Counter()
        self.changed: set[int] = set()
        self.alive: list[Tensor] = []
        self.found: list[tuple[int, int, _Chain]] = []
        self.paused = False

    def start(self, name: str, output: Tensor, channels: int) -> None:
        """Begin a chain at a layer's output."""
        self.paused = True
        one, zero = torch.ones(channels, device=output.device), torch.zeros(channels, device=output.device)
        self.paused = False
        self.origins[id(output)] = _Chain(name, one, zero, (id(output),))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.paused:
            return result
        index, self.index = self.index, self.index + (func is not DETACH)
        outputs = tensors_of(result)
        self.alive.extend(outputs)  # keeps every id unique
        inputs = tensors_of([args, list((kwargs or {}).values())])
        for tensor in inputs:
            if id(tensor) not in self.changed:
                self.uses[id(tensor)] += 1
        chain = self.origins.get(id(args[0])) if args and isinstance(args[0], Tensor) else None
        if func in NORMS and chain is not None and args[3] is not None:  # without running statistics it is not affine
            scale, shift = _affine(func, args)
            tensors = (*chain.tensors, id(outputs[0]))
            self.origins[id(outputs[0])] = _Chain(chain.layer, chain.scale * scale, chain.shift * scale + shift, tensors)
        elif func in ADDITIONS and not kwargs and len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
            for operand in (0, 1):
                if id(args[operand]) in self.origins:
                    self.found.append((index, operand, self.origins[id(args[operand])]))
        for tensor in inputs:
            if any(tensor is output for output in outputs):  # changed in place: no longer what the layer answered
                self.origins.pop(id(tensor), None)
                self.changed.add(id(tensor))
        return result


def _affine(func: Any, args: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch normalisation in eval mode."""
    _, weight, bias, mean, variance = args[:5]
    eps = args[6] if func is aten._native_batch_norm_legit_no_training.default else args[-1]
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    return scale.float(), ((0 if bias is None else bias) - mean * scale).float()


def trace(model: nn.Module, names: Sequence[str], batch: Example) -> Trace:
    """Run one small batch and find which layers are called once, and which end in an addition.

    Args:
        model: In eval mode.
        names: The planned layers.
        batch: A few examples.
    """
    tracer = _Tracer()
    calls: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(module: nn.Module, args: Any, output: Tensor) -> None:
            calls.append(name)
            tracer.alive.append(output)
            tracer.start(name, output, output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1])

        return record

    _run(model, {name: hook(name) for name in names}, batch, tracer)
    counts = Counter(calls)
    additions: dict[int, tuple[int, Addition]] = {}
    for index, operand, chain in tracer.found:
        if counts[chain.layer] == 1 and all(tracer.uses[tensor] == 1 for tensor in chain.tensors):
            order = calls.index(chain.layer)
            if index not in additions or order > additions[index][0]:  # of two branches, the one that ends last
                additions[index] = order, Addition(chain.layer, operand, chain.scale, chain.shift)
    once = tuple(name for name in calls if counts[name] == 1)
    found = {index: addition for index, (_, addition) in additions.items()}
    tracer.alive.clear()
    return Trace(once, found, _waiting(model, once, found, batch))


def _run(model: nn.Module, hooks: Mapping[str, Callable[..., None]], batch: Example, mode: TorchDispatchMode) -> None:
    """Run a batch under a dispatch mode, with forward hooks at layers."""
    handles = [model.get_submodule(name).register_forward_hook(hook, prepend=True) for name, hook in hooks.items()]
    try:
        with torch.no_grad(), uncached(), mode:
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()


class _Living(TorchDispatchMode):
    """Knows which of the tensors made under it are still in memory."""

    def __init__(self, places: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = places  # number of an operation to the layer that is fitted there
        self.index = 0
        self.made: list[tuple[weakref.ref[Tensor], int, int]] = []
        self.found: dict[str, int] = {}

    def note(self, name: str) -> None:
        """Keep how many bytes are alive."""
        self.made = [entry for entry in self.made if entry[0]() is not None]
        self.found[name] = max(self.found.get(name, 0), sum({place: size for _, place, size in self.made}.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index, self.index = self.index, self.index + (func is not DETACH)
        if index in self.places:
            self.note(self.places[index])
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            self.made.append((weakref.ref(tensor), storage.data_ptr(), storage.nbytes()))
        return result


def _waiting(model: nn.Module, names: Sequence[str], additions: Mapping[int, Addition], batch: Example) -> dict[str, int]:
    """Return the bytes of one example that are alive at each layer, or at the addition where it is fitted."""
    living = _Living({index: addition.layer for index, addition in additions.items()})
    _run(model, {name: lambda module, args, output, name=name: living.note(name) for name in names}, batch, living)
    return {name: size // batch_size(batch) for name, size in living.found.items()}


def uncached() -> torch.autocast:
    """Return a context in which a network's own autocast casts weights anew in every forward.

    Its cache would leave casts out of the second forward, and operations could not be told by their number.
    """
    return torch.autocast("cpu", enabled=False, cache_enabled=False)

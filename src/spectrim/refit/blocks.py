"""Blocks of a network: modules that hold a few planned layers and have one input and one output, for any graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.network.calling import Example, batch_size, call, evaluation_mode, head
from spectrim.refit.regression import TWICE

MOST = 4  # planned layers of a block
NEVER = "one forward does not call it as a module"
FORM = "its inputs or outputs are not one tensor with the batch in dimension 0"


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: The module.
        layers: The planned layers that it holds, in order of execution.
    """

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """How a network falls into blocks.

    Attributes:
        found: In order of execution; none holds another, and no layer is in two.
        left: Planned layers that are in none, and why.
    """

    found: tuple[Block, ...]
    left: Mapping[str, str]


def find_blocks(model: nn.Module, layers: Sequence[str], batch: Example, unit: int = 1) -> Blocks:
    """Return the largest modules that hold at most four planned layers; where there are none, the layers by themselves.

    A block is not the network itself, is called once a forward and alone calls its layers. It takes one floating tensor and
    returns one, both with the batch in dimension 0 for batches of two sizes.

    Args:
        model: The compressed network.
        layers: The planned layers.
        batch: A few examples, three times `unit` at least.
        unit: Batches are multiples of so many.
    """
    planned = {id(model.get_submodule(name)): name for name in layers}
    held = {
        name: {planned[id(inner)] for inner in module.modules() if id(inner) in planned}
        for name, module in model.named_modules()
        if name
    }
    modules = {name: model.get_submodule(name) for name, own in held.items() if own}
    watches = [_watched(model, modules, planned, head(batch, number * unit)) for number in (2, 3)]
    found, taken = [], set[str]()
    for name in modules:  # from the outside in
        own = held[name]
        if len(own) <= MOST and not own & taken and not any(watch.fault(name, own) for watch in watches):
            taken |= own
            found.append(name)
    order = {name: number for number, name in enumerate(dict.fromkeys(watches[0].order))}
    places = {planned[id(module)]: name for name, module in modules.items() if id(module) in planned}
    ordered = [Block(name, tuple(sorted(held[name], key=lambda own: order[places[own]]))) for name in found]
    left = {
        layer: next(fault for watch in watches if (fault := watch.fault(places[layer], {layer})))
        for layer in layers
        if layer not in taken
    }
    return Blocks(tuple(sorted(ordered, key=lambda block: order[block.name])), left)


class _Watch:
    """What one forward does with some modules."""

    def __init__(self, layers: Mapping[str, str], size: int) -> None:
        self.layers, self.size = layers, size  # names of planned modules, and of their layers
        self.active: list[str] = []
        self.order: list[str] = []
        self.inside: Counter[tuple[str, str]] = Counter()  # calls of a layer while a module runs
        self.unsuited: set[str] = set()

    def enter(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return a hook that notes a call."""

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.active.append(name)
            self.order.append(name)
            if len(args) != 1 or kwargs or not self._suits(args[0]):
                self.unsuited.add(name)
            if name in self.layers:
                self.inside.update((around, self.layers[name]) for around in {"", *self.active})

        return note

    def leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return a hook that notes what a call returns."""

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.active.pop()
            if not self._suits(output):
                self.unsuited.add(name)

        return note

    def fault(self, name: str, layers: set[str]) -> str:
        """Return why a module cannot be a block of these layers; nothing if it can."""
        calls = self.order.count(name)
        if calls != 1:
            return TWICE if calls else NEVER
        if any(self.inside[name, layer] != self.inside["", layer] for layer in layers):
            return TWICE
        return FORM if name in self.unsuited else ""

    def _suits(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1 and len(value) == self.size


def _watched(model: nn.Module, modules: Mapping[str, nn.Module], planned: Mapping[int, str], batch: Example) -> _Watch:
    """Return what one forward does with modules."""
    watch = _Watch({name: planned[id(module)] for name, module in modules.items() if id(module) in planned}, batch_size(batch))
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(watch.enter(name), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(watch.leave(name)))
        with evaluation_mode(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return watch

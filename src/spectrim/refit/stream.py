"""The twin stream: one pass in which every layer sees the original network and the compressed one side by side.

The network runs once on cat(x, x). A hook at each planned layer sees the original stream in the first half of the batch
and the compressed stream in the second, waits until the layer is fitted, and returns cat(original output, fitted output), so
that everything downstream sees the compressed prefix. More images than fit in one batch run in chunks in lock step: at each
layer all arrive before the layer is fitted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrim.network.calling import Example, answer, call, doubled, evaluation_mode
from spectrim.refit.lockstep import LockStep
from spectrim.refit.trace import ADDITIONS, DETACH, Trace, aten, uncached

WAY_OUT = "use refit=False"


@dataclass(frozen=True)
class Arrival:
    """What one chunk of N images brings to a layer.

    Attributes:
        chunk: Number of the chunk.
        name: The layer.
        x: Its input in the compressed stream, (N, ...).
        target: What it should answer, (N, ...).
        response: What the dense layer answers to `x`, (N, ...).
    """

    chunk: int
    name: str
    x: Tensor
    target: Tensor
    response: Tensor


class TwinStream:
    """The pass itself.

    Args:
        model: The original network in eval mode; hooks are added and removed, nothing else changes.
        found: From `trace`.
        modules: Layer name to the module that stands in its place. Whoever iterates adds the module of each layer that
            arrives, before asking for the next; those of planned layers that are never to arrive are there beforehand.
    """

    def __init__(self, model: nn.Module, found: Trace, modules: dict[str, nn.Module]) -> None:
        """Store the arguments."""
        self.model, self.modules = model, modules
        self.additions = found.additions
        self.deferred = {addition.layer for addition in found.additions.values()}
        self.local = threading.local()

    def arrivals(self, room: Mapping[str, int], batches: Sequence[Example]) -> Iterator[list[Arrival]]:
        """Run batches in lock step, and yield what they bring to each of the sites, in order of execution.

        Chunks that an early layer has no room for start later: they go past the layers that are fitted already.

        Args:
            room: Planned layers that are called once, in order of execution, to how many of the batches may wait there; never
                fewer than before, and one at least.
            batches: Chunks of the calibration inputs.

        Raises:
            RuntimeError: If the forward takes another path for other inputs.
        """
        self.sites, order = set(room), list(room.values())
        self.steps = LockStep(len(batches), lambda chunk: self._forward(chunk, batches[chunk]))
        handles = []
        with evaluation_mode(self.model):
            try:
                for name in {*self.sites, *self.modules}:
                    hook = self._hook(name)  # before the user's own, which then run once, on both streams alike
                    handles.append(self.model.get_submodule(name).register_forward_hook(hook, prepend=True))
                for running in (*order, *order[-1:]):  # and on to the end
                    found = [self.steps.advance(chunk) for chunk in range(running)]
                    if not any(found):
                        break
                    if len({arrival.name if arrival else None for arrival in found}) > 1:
                        raise RuntimeError(
                            f"the forward takes another path for other inputs, so it cannot be refitted; {WAY_OUT}"
                        )
                    yield found
            finally:
                self.steps.close()
                for handle in handles:
                    handle.remove()
        if missing := self.sites - set(self.modules):
            raise RuntimeError(f"the forward never came to the output of {min(missing)!r}, so it cannot be refitted; {WAY_OUT}")

    def _forward(self, chunk: int, batch: Example) -> None:
        self.local.chunk, self.local.pending = chunk, {}
        self.local.mode = _Interceptor(self)
        with torch.no_grad(), uncached():
            inputs = [doubled(batch)]
            with self.local.mode:
                call(self.model, inputs.pop())  # nobody else holds them while the chunk waits

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            x: Tensor = args[0]
            with self.local.mode.pause():
                half = len(x) // 2
                if name in self.deferred:  # its input may be changed in place before the addition comes
                    self.local.pending[name] = x[half:].clone(), output
                    return None
                if name in self.sites:
                    self._wait(name, x[half:], output[:half], output[half:])
                return torch.cat([output[:half], answer(self.modules[name], x[half:]).to(output.dtype)])

        return replace

    def add(self, index: int, args: list[Any]) -> None:
        """Have a deferred layer fitted at its addition, and put its answer into the operand, in place of the dense one's."""
        addition = self.additions[index]
        x, output = self.local.pending.pop(addition.layer)
        half = len(x)
        branch, other = args[addition.operand], args[1 - addition.operand]
        view = (-1,) if isinstance(self.model.get_submodule(addition.layer), nn.Linear) else (-1, *(1,) * (output.ndim - 2))
        scale, shift = addition.scale.to(output.dtype).view(view), addition.shift.to(output.dtype).view(view)
        small = scale.abs() <= 1e-3 * scale.abs().max()  # a channel that hardly reaches the sum cannot pay anything back
        owed = torch.where(small, 0, (other[:half] - other[half:]) / torch.where(small, 1, scale))
        self._wait(addition.layer, x, output[:half] + owed, output[half:])
        fitted = scale * answer(self.modules[addition.layer], x).to(output.dtype) + shift
        args[addition.operand] = torch.cat([branch[:half], fitted])

    def _wait(self, name: str, x: Tensor, target: Tensor, response: Tensor) -> None:
        """Wait until the layer is fitted, if it is not yet."""
        if name not in self.modules:
            chunk = self.local.chunk
            self.steps.wait(chunk, Arrival(chunk, name, x, target, response))


class _Interceptor(TorchDispatchMode):
    """Counts the operations of one forward as the tracer did, and stops at the additions that it found."""

    def __init__(self, twin: TwinStream) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.twin = twin
        self.index = 0
        self.paused = False

    def pause(self) -> _Pause:
        """Return a context in which operations are not counted."""
        return _Pause(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused or func is DETACH:
            return func(*args, **(kwargs or {}))
        index, self.index = self.index, self.index + 1
        if index not in self.twin.additions:
            return func(*args, **(kwargs or {}))
        if func not in ADDITIONS or self.twin.additions[index].layer not in self.twin.local.pending:
            raise RuntimeError(f"the forward takes another path for other inputs, so it cannot be refitted; {WAY_OUT}")
        changed = list(args)
        self.twin.add(index, changed)
        if func is aten.add_.Tensor:
            if changed[0] is not args[0]:
                args[0].copy_(changed[0])
            return func(args[0], changed[1])
        return func(*changed)


class _Pause:
    def __init__(self, mode: _Interceptor) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.mode.paused = True

    def __exit__(self, *_: object) -> None:
        self.mode.paused = False

"""The twin stream: one pass in which every layer sees the original network and the compressed one side by side.

The network runs once on cat(x, x). A hook at each planned layer sees the original stream in the first half of the batch
and the compressed stream in the second, gathers statistics, has the layer fitted, and returns cat(original output, fitted
output), so that everything downstream sees the compressed prefix. More images than fit in one batch run in chunks in lock
step: one thread each, of which one computes at a time; at each layer all arrive before the layer is fitted.

At a residual addition the target is the block's output: (branch + shortcut) of the original less the compressed shortcut.
A first run under a dispatch mode finds additions one of whose operands is a planned layer's output, up to per-channel
affine operations such as BatchNorm. That layer is then fitted at the addition, where both shortcuts are known. This sees
tensors, not module classes, so it works for any graph; where nothing is found the target is the layer's own output.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrim.layer import Example, call, doubled, evaluation_mode, tensors_of, uncast

WAY_OUT = "use refit=False"
aten = torch.ops.aten
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
NORMS = (
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
    aten._batch_norm_no_update.default,
)


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
    """What a first run found: the order of the layers' only calls, and the additions by index of the operation."""

    once: tuple[str, ...]
    additions: dict[int, Addition]
    bytes_per_example: int


class Site(Protocol):
    """What is fitted at one layer: observes both streams of each chunk, then is solved, then answers."""

    def observe(self, x: Tensor, target: Tensor, response: Tensor) -> None:
        """Take the compressed stream's input, the wanted output and the dense layer's output of one chunk."""

    def solve(self) -> nn.Module:
        """Return the module that replaces the layer."""


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
        self.largest = 0
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
        index, self.index = self.index, self.index + 1
        outputs = tensors_of(result)
        self.alive.extend(outputs)  # keeps every id unique
        self.largest = max([self.largest, *(tensor.numel() * tensor.element_size() for tensor in outputs)])
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

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.no_grad(), _uncached(), tracer:
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(calls)
    additions: dict[int, tuple[int, Addition]] = {}
    for index, operand, chain in tracer.found:
        if counts[chain.layer] == 1 and all(tracer.uses[tensor] == 1 for tensor in chain.tensors):
            order = calls.index(chain.layer)
            if index not in additions or order > additions[index][0]:  # of two branches, the one that ends last
                additions[index] = order, Addition(chain.layer, operand, chain.scale, chain.shift)
    once = tuple(name for name in calls if counts[name] == 1)
    size = tracer.largest // max(len(tensors_of(batch)[0]), 1)
    return Trace(once, {index: addition for index, (_, addition) in additions.items()}, size)


def _uncached() -> torch.autocast:
    """Return a context in which the network's own autocast casts weights in every forward, so that operations are as many."""
    return torch.autocast("cpu", enabled=False, cache_enabled=False)


class _Stopped(Exception):
    """Another chunk failed."""


class _LockStep:
    """Chunks take turns, always in the same order, so that results do not depend on the scheduler."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.turn = 0
        self.error: BaseException | None = None
        self.finished: set[int] = set()
        self.changed = threading.Condition()

    def wait(self, chunk: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == chunk or self.error is not None)
            if self.error is not None:
                raise _Stopped

    def hand_over(self, chunk: int) -> None:
        with self.changed:
            self.turn = (chunk + 1) % self.count
            self.changed.notify_all()

    def stop(self, error: BaseException) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def run(self, work: Callable[[int], None]) -> None:
        """Run work(chunk) for every chunk, and raise what the first failing one raised."""

        def body(chunk: int) -> None:
            try:
                self.wait(chunk)
                work(chunk)
                self.hand_over(chunk)
            except _Stopped:
                pass
            except BaseException as error:
                self.stop(error)
            finally:
                with self.changed:
                    self.finished.add(chunk)
                    self.changed.notify_all()

        threads = [threading.Thread(target=body, args=(chunk,), daemon=True) for chunk in range(self.count)]
        try:
            for thread in threads:
                thread.start()
            self.rest(threads)
        except BaseException as error:  # an interrupt reaches the main thread only
            self.stop(error)
            while True:
                with contextlib.suppress(KeyboardInterrupt):
                    self.rest(threads)
                    break
            raise
        if self.error is not None:
            raise self.error

    def rest(self, threads: Sequence[threading.Thread]) -> None:
        """Wait until all threads that were started have finished.

        With one still inside torch the interpreter would abort at its end. After an interrupted `join` Python takes a running
        thread for a stopped one (bpo-45274), so they are counted here.
        """
        with self.changed:
            while any(thread.ident is not None and chunk not in self.finished for chunk, thread in enumerate(threads)):
                self.changed.wait(0.2)


class TwinStream:
    """The pass itself.

    Args:
        model: The original network in eval mode; hooks are added and removed, nothing else changes.
        found: From `trace`.
        sites: What to fit at each layer that is called once.
        fixed: Modules of the other planned layers, fitted beforehand.
        progress: Called with the number of layers fitted.
    """

    def __init__(
        self,
        model: nn.Module,
        found: Trace,
        sites: dict[str, Site],
        fixed: dict[str, nn.Module],
        progress: Callable[[int], None],
    ) -> None:
        """Store the arguments."""
        self.model, self.sites, self.progress = model, sites, progress
        self.modules = dict(fixed)
        self.additions = found.additions
        self.deferred = {addition.layer for addition in found.additions.values()}
        self.order: list[str] = []
        self.local = threading.local()

    def run(self, batches: Sequence[Example]) -> dict[str, nn.Module]:
        """Run all batches in lock step and return the module for every planned layer."""
        self.steps = _LockStep(len(batches))
        handles = []
        for name in {*self.sites, *self.modules}:
            handles.append(self.model.get_submodule(name).register_forward_hook(self._hook(name)))
        try:
            with evaluation_mode(self.model):
                self.steps.run(lambda chunk: self._forward(chunk, batches[chunk]))
        finally:
            for handle in handles:
                handle.remove()
        if missing := set(self.sites) - set(self.modules):
            raise RuntimeError(f"the forward never came to the output of {min(missing)!r}, so it cannot be refitted; {WAY_OUT}")
        return self.modules

    def _forward(self, chunk: int, batch: Example) -> None:
        self.local.chunk, self.local.visited, self.local.pending = chunk, 0, {}
        self.local.mode = _Interceptor(self)
        twice = doubled(batch)
        with torch.no_grad(), _uncached(), self.local.mode:
            call(self.model, twice)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def answer(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            x: Tensor = args[0]
            if name in self.deferred:
                self.local.pending[name] = x, output
                return None
            with self.local.mode.pause():
                half = len(x) // 2
                if name in self.sites:
                    self.meet(name, x[half:], output[:half], output[half:])
                return torch.cat([output[:half], self.modules[name](x[half:])])

        return answer

    def meet(self, name: str, x: Tensor, target: Tensor, response: Tensor) -> None:
        """Observe one chunk, let the others arrive, have the last one solve."""
        chunk, visited = self.local.chunk, self.local.visited
        self.local.visited += 1
        if chunk == 0:
            self.order.append(name)
        if len(self.order) <= visited or self.order[visited] != name:
            raise RuntimeError(f"the forward takes another path for other inputs, so it cannot be refitted; {WAY_OUT}")
        self.sites[name].observe(x, target, response)
        if chunk == self.steps.count - 1:
            self.modules[name] = self.sites[name].solve()
            self.progress(len(self.order))
        self.steps.hand_over(chunk)
        self.steps.wait(chunk)

    def add(self, index: int, args: list[Any]) -> None:
        """Fit a deferred layer at its addition and put its answer into the operand, in place of the dense one's."""
        addition = self.additions[index]
        x, output = self.local.pending.pop(addition.layer)
        half = len(x) // 2
        branch, other = args[addition.operand], args[1 - addition.operand]
        view = (-1,) if isinstance(self.model.get_submodule(addition.layer), nn.Linear) else (-1, *(1,) * (output.ndim - 2))
        scale, shift = addition.scale.to(output.dtype).view(view), addition.shift.to(output.dtype).view(view)
        small = scale.abs() <= 1e-3 * scale.abs().max()  # a channel that hardly reaches the sum cannot pay anything back
        owed = torch.where(small, 0, (other[:half] - other[half:]) / torch.where(small, 1, scale))
        self.meet(addition.layer, x[half:], output[:half] + owed, output[half:])
        fitted = scale * uncast(self.modules[addition.layer], x[half:]).to(output.dtype) + shift
        args[addition.operand] = torch.cat([branch[:half], fitted])


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
        if self.paused:
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

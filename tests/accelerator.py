"""A device that this machine does not have: tensors are computed on the CPU and said to be on another device.

It refuses what a real one refuses: operations on tensors of two devices (but for scalars and indices), a CPU generator for
its numbers, and NumPy's view of its tensors. So a forgotten `.to(device)` shows on any machine. It knows nothing of speed,
kernels or precision.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectrim.pipeline import cache

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros")
FACTORIES += ("zeros_like", "empty_like", "ones_like", "randn_like", "as_tensor")
BETWEEN = {torch.ops.aten.copy_.default, torch.ops.aten._has_compatible_shallow_copy_type.default}
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


@contextmanager
def accelerator() -> Iterator[None]:
    """Make `cuda` usable in this thread and in those that begin from now on."""
    memory = Memory()
    patches: dict[str, Any] = {"to": memory.to, "cuda": memory.cuda, "cpu": memory.cpu, "numpy": memory.numpy}
    patches |= {"device": property(memory.device), "is_cuda": property(memory.holds), "__deepcopy__": memory.deepcopy}

    def run(thread: threading.Thread, before: Callable[[threading.Thread], None] = threading.Thread.run) -> None:
        with Watch(memory):
            before(thread)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(threading.Thread, "run", run))
        for name, value in patches.items():
            value = value if isinstance(value, property) else functools.partialmethod(_swapped, value)
            stack.enter_context(mock.patch.object(Tensor, name, value))
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, functools.partial(memory.make, getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch, "load", functools.partial(memory.load, torch.load)))
        stack.enter_context(mock.patch.object(cache, "safe_open", functools.partial(memory.open, cache.safe_open)))
        stack.enter_context(Watch(memory))
        yield


def _swapped(tensor: Tensor, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(tensor, *args, **kwargs)


class Memory:
    """What is on the device: storages, held so that no address is used again."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.carrying = threading.local()
        self.plain = {name: getattr(Tensor, name) for name in ("to", "numpy", "__deepcopy__", "device")}

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.storages

    def device(self, tensor: Tensor) -> torch.device:
        return DEVICE if self.holds(tensor) else self.plain["device"].__get__(tensor)

    def take(self, result: Any) -> Any:
        """Put what an operation returned on the device."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage
        return result

    def to(self, tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        """Carry a tensor to a device and dtype."""
        for value in args:
            if isinstance(value, (str, torch.device)):
                device = value
            elif isinstance(value, Tensor):
                device, kwargs["dtype"] = self.device(value), value.dtype
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
        result = self.plain["to"](tensor, **kwargs) if any(value is not None for value in kwargs.values()) else tensor
        if device is None or torch.device(device).type == self.device(tensor).type:
            return result
        if torch.device(device).type == DEVICE.type:
            return self.take(result.clone())
        self.carrying.now = True
        result = result.clone()
        self.carrying.now = False
        return result

    def cuda(self, tensor: Tensor) -> Tensor:
        return self.to(tensor, DEVICE)

    def cpu(self, tensor: Tensor) -> Tensor:
        return self.to(tensor, CPU)

    def numpy(self, tensor: Tensor, **kwargs: Any) -> Any:
        if self.holds(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
        return self.plain["numpy"](tensor, **kwargs)

    def deepcopy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """Copy; a buffer's storage is copied without an operation."""
        result = self.plain["__deepcopy__"](tensor, memo)
        return self.take(result) if self.holds(tensor) else result

    def make(self, function: Callable[..., Tensor], *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        """Make a tensor on a device."""
        result = function(*args, **kwargs)
        if device is None or torch.device(device).type == self.device(result).type:
            return result
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return self.to(result, device)

    def load(self, function: Callable[..., Any], *args: Any, map_location: Any = CPU, **kwargs: Any) -> Any:
        """Read a file onto a device."""
        result = function(*args, **kwargs)
        return self.take(result) if torch.device(map_location).type == DEVICE.type else result

    @contextmanager
    def open(self, function: Callable[..., Any], *args: Any, device: Any = CPU, **kwargs: Any) -> Iterator[Any]:
        """Open a file whose tensors are read onto a device."""
        with function(*args, device="cpu", **kwargs) as file:
            there = torch.device(device).type == DEVICE.type
            read = (lambda name: self.take(file.get_tensor(name))) if there else file.get_tensor
            yield SimpleNamespace(metadata=file.metadata, keys=file.keys, get_tensor=read)


class Watch(TorchDispatchMode):
    """Looks at every operation, also those of the backward pass."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in BETWEEN or getattr(self.memory.carrying, "now", False):
            return result
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if function in INDEXED:  # indices may be on the CPU
            indices = [value for value in tree_leaves(args[1]) if isinstance(value, Tensor) and self.memory.holds(value)]
            tensors = [args[0], *args[2:3], *indices]
        placed = {self.memory.holds(value) for value in tensors if value.ndim or self.memory.holds(value)}
        if True in placed and any(isinstance(value, torch.Generator) for value in (*args, *(kwargs or {}).values())):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if len(placed) > 1:
            told = ", ".join(f"{tuple(value.shape)} {self.memory.device(value)}" for value in tensors)
            raise RuntimeError(f"{function} expected all tensors to be on the same device, but found {told}")
        return self.memory.take(result) if True in placed else result

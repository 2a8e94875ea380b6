"""ExecuTorch with XNNPACK, the runtime of phones, here on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectrim.network.calling import Example, tensors_of
from spectrim.targets.base import Session, Target, checked
from spectrim.targets.export import arguments, exporting, plain


@dataclass(frozen=True)
class ExecuTorch(Target):
    """ExecuTorch with XNNPACK on the CPU, in single precision.

    It has one pool of threads in a process: load and run sessions of one number of threads before those of another.

    Example:
        >>> ExecuTorch().threads
        1
    """

    title: ClassVar[str] = "ExecuTorch"
    word: ClassVar[str] = "executorch"
    modules: ClassVar[tuple[str, ...]] = ("executorch",)
    extra: ClassVar[str] = "executorch"

    def load(self, model: nn.Module, example: Example) -> Session:
        """Return a session of the network as an ExecuTorch program; what XNNPACK does not take runs in portable kernels."""
        self.check()
        network, given = plain(model, example)
        args, keywords = arguments(given)
        with exporting(self.title):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(network, args, keywords)
            data = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
            ready = partial(self._ready, data, [x.contiguous() for x in tensors_of(given)])
            session = Session(ready(), len(data), "process" if self.threads == 1 else "wall", ready)
        return checked(session, network, given)

    def _ready(self, data: bytes, inputs: list[Tensor]) -> Callable[[], Any]:
        """Return what does one forward."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != self.threads:
            portable_lib._unsafe_reset_threadpool(self.threads)
        return partial(_execute, Runtime.get().load_program(data).load_method("forward"), inputs, self.threads)

    def describe(self) -> dict[str, str]:
        """Return version, CPU and threads."""
        self.check()
        from importlib.metadata import version

        return self._described(version("executorch"), "f32")


def _execute(method: Any, inputs: list[Tensor], threads: int) -> Any:
    """Return the outputs of one forward.

    Raises:
        RuntimeError: If another session has changed the pool of threads, which this one holds.
    """
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != threads:
        raise RuntimeError("ExecuTorch has one pool of threads in a process, and a session with other threads changed it")
    return method.execute(inputs)

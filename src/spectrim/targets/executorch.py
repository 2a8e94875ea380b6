"""ExecuTorch with XNNPACK, the runtime of phones, here on the CPU, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph

from spectrim.network.calling import Example, call, joined, portions, tensors_of
from spectrim.targets.base import Session, Target, checked
from spectrim.targets.export import Program, arguments, exporting, plain, traced
from spectrim.targets.files import Format, Run

BATCH = 32  # examples that ranges are found with at once


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
            data = _lowered(torch.export.export(network, args, keywords))
            ready = partial(self._ready, data, list(map(_laid, tensors_of(given))))
            session = Session(ready(), len(data), self.clock, ready)
        return checked(session, network, given)

    def _ready(self, data: bytes, inputs: list[Tensor]) -> Callable[[], Any]:
        """Return what does one forward."""
        return partial(_execute, self.method(data), inputs, self.threads)

    def method(self, data: bytes) -> Any:
        """Return the forward of a program."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != self.threads:
            portable_lib._unsafe_reset_threadpool(self.threads)
        return Runtime.get().load_program(data).load_method("forward")

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


class Pte(Format):
    """A program for ExecuTorch with XNNPACK, for as many examples as it was made with; int8 by XNNPACK's quantizer.

    Metadata are what its method `spectrim` returns, as JSON.
    """

    title = "ExecuTorch"
    word = "executorch"
    suffix = ".pte"
    target: ClassVar[ExecuTorch] = ExecuTorch()
    dynamic = False
    int8 = ("executorch", "torchao")

    def write(self, program: Program, path: Path, metadata: Mapping[str, str]) -> None:
        """Write one file."""
        with exporting(self.title, program.exported):
            path.write_bytes(_lowered(program.exported, {"spectrim": json.dumps(dict(metadata))}))

    def open(self, path: Path) -> Run:
        """Return what runs the file on one thread."""
        data = path.read_bytes()
        return partial(_answered, self.target.method(data), self.target.threads, data)

    def quantize(self, program: Program, path: Path, images: Sequence[Example], metadata: Mapping[str, str]) -> None:
        """Quantize weights and activations."""
        free = traced(program.network, program.example, self.title, dynamic=True)
        batches = portions([joined(images)], BATCH) if free.dynamic else images  # one by one, ranges take most of the time
        args, keywords = arguments(program.example)
        with exporting(f"{self.title} in int8", program.exported):
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            network = prepare_pt2e(_apart(free.exported), quantizer)
            for example in batches:
                call(network, example)
            small = torch.export.export(convert_pt2e(network), args, keywords)
            path.write_bytes(_lowered(small, {"spectrim": json.dumps(dict(metadata))}))


def _lowered(exported: ExportedProgram, constants: Mapping[str, str] | None = None) -> bytes:
    """Return a program for ExecuTorch, with methods that return constants."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    methods = dict(constants) if constants is not None else None
    if _alone(exported.graph):
        exported = torch.export.export(_apart(exported), *(exported.example_inputs or ()))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], constant_methods=methods)
    data: bytes = lowered.to_executorch().buffer
    return data


def _alone(graph: Graph) -> list[Any]:
    """Return the norms of one-dimensional maps that no convolution takes in: XNNPACK fails to make convolutions of them."""
    aten = torch.ops.aten
    norms: list[Any] = list(graph.find_nodes(op="call_function", target=aten.batch_norm.default))
    flat = [(norm, norm.args[0]) for norm in norms if norm.meta["val"].ndim == 3]
    return [norm for norm, before in flat if before.target is not aten.conv1d.default or len(before.users) > 1]


def _apart(exported: ExportedProgram) -> nn.Module:
    """Return a program as a module in which such norms are products and sums."""
    aten, network = torch.ops.aten, cast(Any, exported.module())
    for number, node in enumerate(_alone(network.graph)):
        x, *given = node.args[:5]
        weight, bias, mean, variance = (None if each is None else exported.state_dict[each.target].detach() for each in given)
        factor = (variance + node.args[7]).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * factor
        with network.graph.inserting_before(node):
            for word, operator, values in (("factor", aten.mul.Tensor, factor), ("shift", aten.add.Tensor, shift)):
                network.register_buffer(f"norm_{number}_{word}", values[:, None])
                x = network.graph.call_function(operator, (x, network.graph.get_attr(f"norm_{number}_{word}")))
                x.meta = dict(node.meta)
        node.replace_all_uses_with(x)
        network.graph.erase_node(node)
    network.recompile()
    return cast(nn.Module, network)


def _answered(method: Any, threads: int, data: bytes, example: Example) -> list[Tensor]:
    """Return the outputs of one forward; `data`, which the method reads, is kept with it."""
    found = _execute(method, list(map(_laid, tensors_of(example))), threads)
    return [x.clone() for x in tensors_of(found)]  # the memory is the method's


def _laid(tensor: Tensor) -> Tensor:
    """Return a tensor with the usual strides, also of sides of 1, where any would do: the runtime reads an order off them."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)

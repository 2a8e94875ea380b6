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
            network = prepare_pt2e(_rewritten(free.exported), quantizer)
            for example in batches:
                call(network, example)
            small = torch.export.export(convert_pt2e(network), args, keywords)
            path.write_bytes(_lowered(small, {"spectrim": json.dumps(dict(metadata))}))


def _lowered(exported: ExportedProgram, constants: Mapping[str, str] | None = None) -> bytes:
    """Return a program for ExecuTorch, with methods that return constants."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    methods = dict(constants) if constants is not None else None
    if _foreign(exported.graph):
        exported = torch.export.export(_rewritten(exported), *(exported.example_inputs or ()))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], constant_methods=methods)
    data: bytes = lowered.to_executorch().buffer
    return data


def _foreign(graph: Graph) -> list[Any]:
    """Return what ExecuTorch with XNNPACK fails on and `_rewritten` writes otherwise.

    That are norms of one-dimensional maps that no convolution takes in, and adaptive maxima over parts of one size.
    """
    aten, found = torch.ops.aten, []
    for node in graph.nodes:
        if node.target is aten.batch_norm.default and node.meta["val"].ndim == 3:
            wanted = node.args[0].target is not aten.conv1d.default or len(node.args[0].users) > 1
        elif node.target is aten.adaptive_max_pool2d.default:
            rests = [side % size for side, size in zip(_sides(node), node.args[1], strict=True)]
            wanted = not any(rests) and all(not user.users for user in node.users if user.args[1])
        else:
            continue
        found += [node] if wanted else []
    return found


def _sides(node: Any) -> list[int]:
    """Return height and width of what a node gets."""
    return list(node.args[0].meta["val"].shape[-2:])


def _rewritten(exported: ExportedProgram) -> nn.Module:
    """Return a program as a module in which such norms are products and sums, and such maxima those of windows."""
    aten, network = torch.ops.aten, cast(Any, exported.module())
    for node in _foreign(network.graph):
        with network.graph.inserting_before(node):
            if node.target is aten.batch_norm.default:
                node.replace_all_uses_with(_product_and_sum(network, node, exported.state_dict))
            else:
                window = [side // size for side, size in zip(_sides(node), node.args[1], strict=True)]
                for user in list(node.users):  # its values; and their places, which nothing uses
                    if user.users:
                        found = network.graph.call_function(aten.max_pool2d.default, (node.args[0], window, window))
                        found.meta = dict(user.meta)
                        user.replace_all_uses_with(found)
                    network.graph.erase_node(user)
        network.graph.erase_node(node)
    network.recompile()
    return cast(nn.Module, network)


def _product_and_sum(network: Any, norm: Any, state: Mapping[str, Tensor]) -> Any:
    """Return the node of a product and a sum that are a norm, with factor and shift (C, 1) as buffers of the network."""
    x, *given = norm.args[:5]
    weight, bias, mean, variance = (None if each is None else state[each.target].detach() for each in given)
    factor = (variance + norm.args[7]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    for word, operator, values in (("factor", torch.ops.aten.mul.Tensor, factor), ("shift", torch.ops.aten.add.Tensor, shift)):
        network.register_buffer(f"{norm.name}_{word}", values[:, None])
        x = network.graph.call_function(operator, (x, network.graph.get_attr(f"{norm.name}_{word}")))
        x.meta = dict(norm.meta)
    return x


def _answered(method: Any, threads: int, data: bytes, example: Example) -> list[Tensor]:
    """Return the outputs of one forward; `data`, which the method reads, is kept with it."""
    found = _execute(method, list(map(_laid, tensors_of(example))), threads)
    return [x.clone() for x in tensors_of(found)]  # the memory is the method's


def _laid(tensor: Tensor) -> Tensor:
    """Return a tensor with the usual strides, also of sides of 1, where any would do: the runtime reads an order off them."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)

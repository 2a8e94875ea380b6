"""A network as an ONNX file, and what exporters share: a plain copy on the CPU, one sentence where they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from spectrim.network.calling import Example, batch_size, doubled, first_line, map_tensors, tensors_of
from spectrim.network.copying import duplicate


@dataclass(frozen=True, eq=False)
class Exported:
    """A network as a file.

    Attributes:
        data: The file.
        names: Of its inputs.
        arrays: The example's tensors, in the same order.
        network, example: What the file was made from: single precision, on the CPU.
    """

    data: bytes
    names: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]
    network: nn.Module
    example: Example


def plain(model: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """Return copies of a network, in eval mode, and of its example: on the CPU, in single precision."""
    network = duplicate(model).to("cpu", torch.float32).eval()
    return network, map_tensors(lambda x: x.detach().to("cpu", torch.float32 if x.is_floating_point() else x.dtype), example)


def arguments(example: Example) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return positional and keyword arguments, as `calling.call` passes them."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


@contextmanager
def exporting(title: str, exported: ExportedProgram | None = None) -> Iterator[None]:
    """Keep an exporter quiet, and say in one sentence what it could not do.

    Args:
        title: Of the runtime.
        exported: What is exported, to name the layer.

    Raises:
        ValueError: If the exporter fails, in whatever way.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own text is about the exporter
        raise ValueError(
            f"the network cannot be exported for {title}: {first_line(cause)}{layer_of(error, exported)}"
        ) from error
    finally:
        logging.disable(level)


@dataclass(frozen=True, eq=False)
class Program:
    """A network as torch exports it, from which every file is written.

    Attributes:
        exported: The program.
        network, example: What it was made from: single precision, on the CPU.
        dynamic: Whether it takes any number of examples; else as many as the example has.
    """

    exported: ExportedProgram
    network: nn.Module
    example: Example
    dynamic: bool

    def names(self) -> list[str]:
        """Return the names of the inputs."""
        return [str(name) for name in self.exported.graph_signature.user_inputs if isinstance(name, str)]


def traced(network: nn.Module, example: Example, title: str, *, dynamic: bool) -> Program:
    """Return a network as a program.

    Args:
        network: In eval mode, single precision, on the CPU.
        example: One batch.
        title: Of the runtime, for messages.
        dynamic: Whether to make one for any number of examples, where the network lets it.

    Raises:
        ValueError: If it cannot be exported.
    """
    if dynamic:
        two = example if batch_size(example) > 1 else doubled(example)  # exporters take a size of 1 for a constant
        size = batch_size(two)
        args, keywords = arguments(map_tensors(torch.clone, two))  # torch notes on a tensor that it was free
        free = partial(_free, size=size)
        with contextlib.suppress(ValueError), exporting(title):
            found = torch.export.export(network, args, keywords, dynamic_shapes=tree_map(free, args or keywords))
            return Program(found, network, two, dynamic=True)
    args, keywords = arguments(example)
    with exporting(title):
        return Program(torch.export.export(network, args, keywords), network, example, dynamic=False)


def _free(leaf: Any, size: int) -> Any:
    """Return which dimension of an argument is free: that of the batch, if it has one."""
    return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else None


def onnx(model: nn.Module, example: Example, title: str) -> Exported:
    """Return a network as an ONNX file for this example's shapes.

    Args:
        model: The network; a copy of it is exported.
        example: One batch: a tensor, a tuple of arguments or a dict of keywords, tensors in any nesting.
        title: Of the runtime, for messages.

    Raises:
        ValueError: If it cannot be exported.
    """
    network, given = plain(model, example)
    data, names = model_proto(traced(network, given, title, dynamic=False), title)
    return Exported(data.SerializeToString(), names, tuple(map(array, tensors_of(given))), network, given)


def model_proto(program: Program, title: str) -> tuple[Any, tuple[str, ...]]:
    """Return a program as an ONNX model, and the names of its inputs.

    Args:
        program: It.
        title: Of the runtime, for messages.

    Raises:
        ValueError: If it cannot be exported; an operator that ONNX lacks is told with its layer.
    """
    names = ["output"] if len(program.exported.graph_signature.user_outputs) == 1 else None
    with exporting(title, program.exported):
        found = torch.onnx.export(program.exported, dynamo=True, verbose=False, output_names=names)
        assert found is not None
        model, inputs = found.model_proto, tuple(str(value.name) for value in found.model.graph.inputs)
    count = len(tensors_of(program.example))
    if len(inputs) != count:
        raise ValueError(
            f"the network cannot be exported for {title}: the example has {count} tensors and the file {len(inputs)} "
            "inputs; leave out of the example what the network does not use"
        )
    return model, inputs


def layer_of(error: BaseException, exported: ExportedProgram | None) -> str:
    """Return the layer whose operator an exporter's error names, in words; nothing if it names none."""
    words = re.findall(r"\b(?:aten|prims)(?:::|\.)(\w+)", f"{error} {error.__cause__ or ''}")
    for node in exported.graph.nodes if exported is not None else ():
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if any(name.endswith((f"::{word}", f"_{word}")) for word in words):  # `prims::j0` is what `aten::special_j0` is made of
            places = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
            return f" (the operator {name} of {f'the layer {places[-1]!r}' if places else 'the network itself'})"
    return ""


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array of its own that lies in one piece."""
    return np.ascontiguousarray(tensor.numpy())

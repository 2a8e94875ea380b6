"""A network as an ONNX file, and what exporters share: a plain copy on the CPU, one sentence where they fail."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.network.calling import Example, first_line, map_tensors, tensors_of
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
def exporting(title: str) -> Iterator[None]:
    """Keep an exporter quiet, and say in one sentence what it could not do.

    Args:
        title: Of the runtime.

    Raises:
        ValueError: If the exporter fails, in whatever way.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own text is about the exporter
        raise ValueError(f"the network cannot be exported for {title}: {first_line(cause)}") from error
    finally:
        logging.disable(level)


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
    args, keywords = arguments(given)
    with exporting(title):
        program = torch.onnx.export(network, args, kwargs=keywords, dynamo=True, verbose=False)
        assert program is not None
        data = program.model_proto.SerializeToString()
        names = tuple(str(value.name) for value in program.model.graph.inputs)
    arrays = tuple(map(array, tensors_of(given)))
    if len(names) != len(arrays):
        raise ValueError(
            f"the network cannot be exported for {title}: the example has {len(arrays)} tensors and the file {len(names)} "
            "inputs; leave out of the example what the network does not use"
        )
    return Exported(data, names, arrays, network, given)


def array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array of its own that lies in one piece."""
    return np.ascontiguousarray(tensor.numpy())

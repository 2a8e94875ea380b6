"""`spectrim inspect`."""

from __future__ import annotations

from typing import Annotated

import torch
from cyclopts import Parameter

from spectrim.cli.models import load_weights, make_model
from spectrim.cli.splits import DEFAULT_INPUT, parse_shape
from spectrim.cli.targets import RuntimeOptions
from spectrim.cli.terminal import Output, lay, progress, say
from spectrim.network.survey import ExampleError
from spectrim.pipeline.config import Config
from spectrim.pipeline.inspect import ALL
from spectrim.pipeline.inspect import inspect as look


def inspect(
    model: str,
    *,
    input_shape: Annotated[str | None, Parameter(name="--input")] = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    target: str | None = None,
    output: Output = Output(),
) -> str | None:
    """Show every layer of a network, what it costs and what can be done to it.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    input_shape
        Shape of a batch, such as 1,3,224,224.
    weights
        Weight file (.safetensors or a torch file of tensors).
    trust_pickle
        Allow a weight file that runs code when it is read.
    target
        Also time the network and show where the time goes: onnxruntime, openvino, torch or executorch.
    output
        What is printed.
    """
    runtime = RuntimeOptions(target=target).chosen()
    network = make_model(model)
    if weights is not None:
        load_weights(network, weights, trust_pickle=trust_pickle)
    shape = parse_shape(input_shape) or DEFAULT_INPUT
    try:
        with progress(output) as advance:
            found = look(network, torch.zeros(shape), config=Config(methods=ALL, target=runtime, progress=advance))
    except ExampleError as error:
        given = " x ".join(map(str, shape))
        raise ValueError(
            f"an input of {given}: {error}; --input must be the shape of a batch that the network takes, such as 1,3,224,224"
        ) from error
    if output.as_json:
        return found.to_json()
    for table in found.tables():
        lay(table)
    for line in found.lines():
        say(line)
    return None
